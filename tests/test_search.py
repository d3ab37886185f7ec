import io
import itertools
import json
import math
from functools import partialmethod

import pytest
import torch

from configs import TINY_TEXT, changed, search_config, without_time
from forgetless.errors import InputError
from forgetless.evaluation.searches import finished_searches
from forgetless.importance import TrainingFisher
from forgetless.records import plain
from forgetless.runs import CHECKPOINT, RunFolder
from forgetless.search import (
    Search,
    SearchArm,
    SearchConfig,
    load_task,
    make_space,
    measure_arms,
    read_records,
    reconcile,
    run,
    search_arms,
    shared_weight_rewards,
)
from forgetless.search.arms import FORMAT
from forgetless.search.epoch import _Clock
from forgetless.search.rewards import Rewards
from forgetless.search.setup import memory_bytes
from forgetless.search.state import EpochState
from forgetless.strategies.evolution import EvolutionOptions
from forgetless.strategies.nao import NaoOptions
from forgetless.strategies.random import RandomStrategy
from forgetless.training import cpu_arithmetic

TINY = search_config(
    space="nas201",
    protection=("none", "wpl"),
    learning_rate=0.05,
    epochs=3,
    models_per_epoch=3,
    batches_per_model=2,
    strategy_steps=1,
    samples_per_step=3,
    final_samples=3,
    final_batches=2,
    units=2,
    batch_size=16,
    max_gradient_norm=5.0,
    protect_from=0,
    wpl_strength=1e5,
)

SMALL_TEXT = search_config(
    epochs=2,
    **TINY_TEXT,
    protect_from=0,
    wpl_strength=1e5,
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A whole run, with a copy of the folder's files after each record."""
    folder = RunFolder.create(tmp_path_factory.mktemp("search") / "run", {"experiment": "search"})
    snapshots = []

    def keep(record, state):
        folder.save_checkpoint(state)
        folder.append(record.to_dict())
        snapshots.append({path.name: path.read_bytes() for path in folder.path.iterdir()})

    return run(TINY, on_epoch=keep), snapshots


def resumed(tmp_path, files):
    path = tmp_path / "resumed"
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    folder = RunFolder(path)
    checkpoint = folder.load_checkpoint()
    records = reconcile(TINY, read_records(TINY, folder), checkpoint)
    return run(TINY, records=records, checkpoint=checkpoint)


def test_records_of_every_arm_and_epoch(stored):
    records, _ = stored
    assert [(r.protection, r.event) for r in records] == [
        (protection, event) for protection in ("none", "wpl") for event in ("epoch", "epoch", "epoch", "derived")
    ]
    json.dumps(plain(records), allow_nan=False)
    assert all(r.num_models + r.num_diverged == 3 for r in records if r.event == "epoch")


def test_first_model_trains_alike_in_every_arm(stored):
    """Nothing is held before the first model is consolidated."""
    config = changed(TINY, models_per_epoch=1, epochs=1, final_samples=0)
    plain, held = run(config)
    assert plain.error_first == held.error_first
    assert plain.mean_step == held.mean_step


@pytest.mark.parametrize("after", [2, 3, 4])
def test_killed_between_epochs_and_resumed(stored, tmp_path, after):
    records, snapshots = stored
    assert without_time(resumed(tmp_path, snapshots[after])) == without_time(records)


def test_killed_between_checkpoint_and_record(stored, tmp_path):
    records, snapshots = stored
    files = {**snapshots[1], "metrics.jsonl": snapshots[0]["metrics.jsonl"]}
    assert without_time(resumed(tmp_path, files)) == without_time(records)


def test_a_truncated_checkpoint_falls_back_to_the_one_before(stored, tmp_path):
    records, snapshots = stored
    files = {**snapshots[2], CHECKPOINT: snapshots[2][CHECKPOINT][:1000]}
    with pytest.warns(UserWarning, match=r"checkpoint\.pt is damaged .* going on from the one before"):
        again = resumed(tmp_path, files)
    assert without_time(again) == without_time(records)


def test_without_any_checkpoint_the_arm_starts_again(stored, tmp_path):
    records, snapshots = stored
    files = {name: content for name, content in snapshots[2].items() if not name.startswith("checkpoint")}
    assert without_time(resumed(tmp_path, files)) == without_time(records)


def test_wpl_is_consolidated_for_used_weights_only():
    config = changed(TINY, protection=("wpl",))
    search = Search(config, load_task(config), SearchArm(0, "wpl"))
    cell = search.strategy.space.parse("|none~0|+|none~0|none~1|+|nor_conv_1x1~0|none~1|none~2|")
    gradients, *_ = search._train(cell, 0)
    search._consolidate(cell, gradients)
    used = {id(p) for p in search.supernet.used_parameters(cell).values()}
    held = {id(p) for p in search.supernet.parameters() if search.protection.plasticity.anchor(p) is not None}
    assert held == used


def test_training_importance_is_the_formula_of_its_batches():
    config = changed(TINY, batches_per_model=3, learning_rate=1e-9)
    task = load_task(config)
    search = Search(config, task, SearchArm(0, "wpl"))
    cell = search.strategy.propose(1)[0]
    gradients, _, skipped = search._train(cell, 0)
    assert skipped == 0
    twin = Search(config, task, SearchArm(0, "wpl"))
    twin.supernet.train()
    used = twin.supernet.used_parameters(cell)
    found = []
    for batch in task.training_batches(3, torch.Generator().manual_seed(0)):
        twin.supernet.zero_grad()
        task.loss_of(twin.supernet, cell)(batch).backward()
        found.append({name: parameter.grad.clone() for name, parameter in used.items()})
    fisher = gradients.fisher(16)
    for name in used:
        values = torch.stack([each[name] for each in found])
        expected = (16 - 1 / 3) * values.var(0) + values.mean(0) ** 2
        torch.testing.assert_close(fisher[f"supernet.{name}"], expected, rtol=1e-3, atol=1e-10)


@pytest.mark.parametrize("batch_size", [2, 8])
def test_training_importance_is_the_fisher_on_average_at_every_batch_size(batch_size):
    """Of 400 examples' gradients g ~ (mean 1, 3 and 0; variance 4): F = E g² = 5, 13 and 4, at every batch size."""
    generator = torch.Generator().manual_seed(0)
    mean, k, repeats = torch.tensor([1.0, 3.0, 0.0], dtype=torch.float64), 5, 4000
    weight = torch.nn.Parameter(torch.zeros(repeats, 3, dtype=torch.float64))
    gradients = TrainingFisher({"w": weight})
    for _ in range(k):
        examples = mean + 2 * torch.randn(batch_size, repeats, 3, generator=generator, dtype=torch.float64)
        weight.grad = examples.mean(0)
        gradients.add()
    estimates = gradients.fisher(batch_size)["w"]
    assert (estimates >= 0).all()
    spread = estimates.std(0) / math.sqrt(repeats)
    assert ((estimates.mean(0) - (mean**2 + 4)).abs() < 4 * spread).all()
    assert spread.max() < 0.2


def test_held_out_importance_is_the_fisher():
    config = changed(TINY, importance="held-out", protection=("wpl",), epochs=1, final_samples=0)
    (record,) = run(config)
    assert record.penalty >= 0
    assert math.isfinite(record.error_second)


def test_text_search_with_every_control():
    config = changed(
        SMALL_TEXT,
        protection=("none", "wpl", "matched-lr", "l2", "freeze"),
        single=True,
        independent=True,
        dropout=0.2,
        weight_drop=0.1,
    )
    records = run(config)
    assert len(records) == 2 * 5
    by = {(r.protection, r.epoch): r for r in records}
    assert by["freeze", 1].mean_step < by["none", 1].mean_step


def test_arms_are_the_same_until_protection_begins():
    config = changed(TINY, protection=("none", "matched-lr", "wpl"), protect_from=2, final_samples=0)
    by = {(r.protection, r.epoch): r for r in run(config)}

    def numbers(protection, epoch):
        (record,) = without_time([by[protection, epoch]])
        return {name: value for name, value in record.items() if name != "protection"}

    assert all(numbers(name, epoch) == numbers("none", epoch) for name in ("wpl", "matched-lr") for epoch in (0, 1))
    assert [by["wpl", epoch].is_protected for epoch in (0, 1, 2)] == [False, False, True]
    assert by["wpl", 2].mean_step != by["none", 2].mean_step


@pytest.mark.parametrize(("rule", "measure"), [("ema", "mean_step"), ("merge", "mean_net_step")])
def test_the_control_arm_moves_as_far_as_the_protected_one(rule, measure):
    config = changed(
        SMALL_TEXT,
        protection=("none", "matched-lr", "wpl"),
        protect_from=1,
        wpl_rule=rule,
        wpl_strength=1e4,
        wpl_decay=0.8,
        epochs=4,
        models_per_epoch=6,
    )
    by = {(r.protection, r.epoch): getattr(r, measure) for r in run(config)}
    for epoch in (1, 2, 3):
        assert by["wpl", epoch] < 0.8 * by["none", epoch]
        assert by["matched-lr", epoch] == pytest.approx(by["wpl", epoch], rel=0.25)


def test_only_the_protected_weights_of_the_control_arm_are_slowed():
    config = changed(SMALL_TEXT, protect="cell", protection=("wpl", "matched-lr"))
    search = Search(config, load_task(config), SearchArm(0, "matched-lr"))
    search.one_epoch({}, lambda phase, values: None)
    search.one_epoch({1: 1e-3}, lambda phase, values: None)
    slow, usual = search.optimizer.param_groups
    assert slow["lr"] < 0.1
    assert usual["lr"] == 10.0
    assert search.supernet.embedding in set(usual["params"])


def test_a_gradient_that_is_not_finite_is_passed_over():
    config = changed(SMALL_TEXT, learning_rate=1e30, epochs=1)
    (record,) = run(config)
    assert record.num_passed_over > 0
    assert record.num_diverged > 0
    json.dumps(record.to_dict(), allow_nan=False)


def test_protection_begins_after_the_first_epoch_in_which_models_forget():
    config = changed(TINY, protection=("wpl",), protect_from="forgetting", epochs=4, final_samples=0)
    search = Search(config, load_task(config), SearchArm(0, "wpl"))
    forgotten = False
    for _ in range(config.schedule.epochs):
        record = search.one_epoch({}, lambda phase, values: None)
        assert record.is_protected == forgotten
        forgotten |= record.forgetting_mean > 0
    assert forgotten


def test_alpha_decays_from_the_first_epoch_with_protection_on_also_after_an_interruption():
    config = changed(TINY, protect_from=1, wpl_strength=8.0, strength_decay=0.5, epochs=4, final_samples=0)
    search = Search(config, load_task(config), SearchArm(0, "wpl"))
    found = []
    for _ in range(config.schedule.epochs):
        state, search = search.state_dict(), Search(config, load_task(config), SearchArm(0, "wpl"))
        search.load_state_dict(state)
        search.one_epoch({}, lambda phase, values: None)
        found.append(search.protection.plasticity.alpha)
    assert found == [8.0, 8.0, 4.0, 2.0]


RIVALS = {
    **dict.fromkeys(("ewc", "mas", "nsas", "si", "wpl-tolerance"), SMALL_TEXT),
    **dict.fromkeys(("coupling", "ogl"), TINY),
    **dict.fromkeys(("wpl-replay", "wise-ft"), SMALL_TEXT),
    **dict.fromkeys(("wpl-lwf", "slower"), TINY),
}


@pytest.mark.parametrize(("protection", "config"), RIVALS.items(), ids=RIVALS)
def test_rivals_run_and_go_on_bit_for_bit(protection, config):
    """From the second epoch with protection on, as if there had been no interruption; and not as without it."""
    options = {"protection": (protection,), "epochs": 4, "protect_from": 1, "final_samples": 0, "seeds": 1}
    options |= {"coupling_num_examples": 3, "coupling_num_rows": 10} if protection == "coupling" else {}
    options |= {"wpl_tolerance_strength": 1e-6} if protection == "wpl-tolerance" else {}
    config = changed(config, **options)
    task = load_task(config)

    def epochs(search, number):
        return [search.one_epoch({}, lambda phase, values: None) for _ in range(number)]

    with cpu_arithmetic(1, flush_denormals=True):
        torch.manual_seed(0)
        whole = Search(config, task, SearchArm(0, protection))
        records = epochs(whole, 3)
        buffer = io.BytesIO()
        torch.save(whole.state_dict(), buffer)
        records += epochs(whole, 1)
        again = Search(config, task, SearchArm(0, protection))
        again.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
        assert without_time(epochs(again, 1)) == without_time(records[-1:])
        torch.manual_seed(0)
        free = epochs(Search(config, task, SearchArm(0, "none")), 3)
    numbers = [{**record, "protection": "", "is_protected": None} for record in without_time(records)]
    plain = [{**record, "protection": "", "is_protected": None} for record in without_time(free)]
    assert numbers[0] == plain[0]
    assert numbers[2]["mean_step"] != plain[2]["mean_step"]


@pytest.mark.parametrize("strategy", ["evolution", "nao", "gdas"])
def test_every_strategy_goes_on_bit_for_bit(strategy, monkeypatch):
    """From the second epoch of two on, to the derived architecture; and learns from as many rewards as any."""
    monkeypatch.setattr(EvolutionOptions, "__init__", partialmethod(EvolutionOptions.__init__, population_size=4))
    monkeypatch.setattr(NaoOptions, "__init__", partialmethod(NaoOptions.__init__, min_observations=4, num_units=8))
    sizes = {"strategy_steps": 2, "epochs": 2, "models_per_epoch": 2, "final_batches": 1}
    config = changed(TINY, strategy=strategy, protection=("wpl",), **sizes)
    states, asked = [], []
    measure = Rewards.of_all
    monkeypatch.setattr(Rewards, "of_all", lambda self, cells: asked.append(len(cells)) or measure(self, cells))

    def keep(record, state):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        states.append(buffer.getvalue())

    records = run(config, on_epoch=keep)
    assert [number for number in asked if number > 1] == [3] * 4  # what is derived is measured one by one
    assert len(records) == 3
    again = run(config, records=records[:1], checkpoint=torch.load(io.BytesIO(states[0]), weights_only=True))
    assert without_time(again) == without_time(records)
    json.dumps(plain(records), allow_nan=False)


def test_gdas_descends_on_the_reward_split_and_leaves_no_gradients(monkeypatch):
    config = changed(TINY, strategy="gdas", protection=("none",), strategy_steps=2)
    task = load_task(config)
    search = Search(config, task, SearchArm(0, "none"))
    images = torch.cat([images for images, _ in task.batches("reward")])
    seen = []
    forward = search.supernet.forward

    def record(x, cell, *weights):
        if weights:
            seen.append(x)
            assert search.supernet.training
            assert (weights[0] == 1).all()
        return forward(x, cell, *weights)

    monkeypatch.setattr(search.supernet, "forward", record)
    search.optimizer.zero_grad()
    shared = [weight.detach().clone() for weight in search.supernet.parameters()]
    before = search.strategy.logits.detach().clone()
    search._learn(EpochState(), _Clock({}), lambda: None)
    assert all(weight.grad is None for weight in search.supernet.parameters())
    assert all(map(torch.equal, search.supernet.parameters(), shared))
    assert not torch.equal(search.strategy.logits, before)
    search.epoch = 1
    search._learn(EpochState(), _Clock({}), lambda: None)
    assert len(seen) == 12
    whole = len(images) // 16 * 16
    assert whole < len(images)  # four images more, whose statistics would be another gradient than training's
    assert all(map(torch.equal, seen, itertools.cycle(torch.split(images[:whole], 16))))


def test_no_search_selects_what_it_draws_and_measures_nothing(monkeypatch):
    config = changed(TINY, strategy="random", protection=("none",), seeds=2, final_samples=6, final_batches=1)
    assert config.arms == ("none",)

    def refuse(*arguments):
        pytest.fail("shared weights are used")

    for owner, name in ((Rewards, "of"), (Search, "one_epoch"), (Search, "_train")):
        monkeypatch.setattr(owner, name, refuse)
    states, shown = [], []
    records = run(config, on_epoch=lambda record, state: states.append(state), on_progress=shown.append)
    assert [(r.event, r.seed) for r in records] == [("derived", 0), ("derived", 1)]
    for record in records:
        drawn = RandomStrategy(make_space(config), record.seed).propose(6)
        assert (record.architecture, None) == record.candidates[0]
        assert record.candidates == [(str(cell), None) for cell in dict.fromkeys(drawn)]
        assert record.reward is None
        assert record.derived_test_error is not None
    assert [progress.total for progress in shown] == [2, 2]
    again = run(config, records=records[:1], checkpoint=states[0])
    assert without_time(again) == without_time(records)
    assert reconcile(config, records, states[1]) == records
    (search, _) = finished_searches("runs/one", config, records)
    assert [(str(cell), None) for cell in search.ranking] == records[0].candidates
    assert search.seconds == 0
    for measure in (measure_arms, lambda *a: shared_weight_rewards(*a, [])):
        with pytest.raises(InputError, match="Expected a search that trains shared weights, but got one with"):
            measure(config, states)


def test_candidates_are_ranked_best_first_and_what_diverged_last(monkeypatch):
    config = changed(TINY, final_samples=12, protection=("none",))
    search = Search(config, load_task(config), SearchArm(0, "none"))
    given = iter([0.2, math.nan, 0.9, 0.5, *[0.1] * 20])
    monkeypatch.setattr(search.rewards, "of", lambda architecture: next(given))
    derived = search.derive(lambda phase, values: None)
    rewards = [reward for _, reward in derived.candidates]
    finite = [reward for reward in rewards if reward is not None]
    assert rewards == [*sorted(finite, reverse=True), None]
    assert (derived.architecture, derived.reward) == derived.candidates[0] == (derived.architecture, 0.9)
    assert len({text for text, _ in derived.candidates}) == len(rewards)


def test_merging_moves_the_weights_and_the_error_right_after_it_is_recorded():
    config = changed(SMALL_TEXT, protection=("l2",), l2_decay=1.0)
    kept, merged = (run(changed(config, l2_rule=rule))[1] for rule in ("replace", "merge"))
    assert kept.error_consolidated == kept.error_first
    assert merged.error_consolidated != merged.error_first
    assert merged.mean_step < kept.mean_step


def test_reward_of_text_is_80_over_perplexity():
    config = search_config(units=4, nodes=2, batch_size=4, num_steps=5, evaluation_batches=1)
    search = Search(config, load_task(config), SearchArm(0, "wpl"))
    assert search.task.reward(math.log(160.0)) == pytest.approx(0.5)
    assert math.isnan(search.task.reward(math.nan))


def test_control_arm_comes_after_wpl():
    config = changed(TINY, protection=("matched-lr", "none", "wpl"), seeds=2)
    assert [a.protection for a in search_arms(config)] == ["none", "wpl", "matched-lr"] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protection": ("wlp",)}, "Did you mean 'wpl'"),
        ({"protection": ("matched-lr",)}, "Expected wpl among the protections"),
        ({"strategy": "enaz"}, "Did you mean 'enas'"),
        ({"space": "recurent"}, "Did you mean 'recurrent'"),
        ({"space": "nas201", "data": "ptb"}, "Expected data that fits the space nas201, but got 'ptb'"),
        ({"data": "mnist"}, "Expected data that fits the space recurrent, but got 'mnist'"),
        ({"wpl_strength": math.nan}, "Expected the strength of wpl to be finite"),
        ({"strength_decay": 1.1}, r"Expected strength_decay in \[0, 1\], but got 1.1"),
        ({"epochs": 0}, "Expected epochs to be at least 1"),
        ({"strategy": "random", "final_samples": 0}, "final_samples of at least 1 for the strategy random, but got 0"),
        ({"strategy": "random", "protection": ("wpl",)}, "no protection but none for the strategy random.*got wpl"),
        ({"strategy": "gdas", "space": "cell"}, "Expected a space of operations on edges for the strategy gdas"),
        ({"final_samples": -1}, "Expected final_samples to be at least 0"),
        ({"learning_rate": 0.0}, "Expected learning_rate to be finite and above 0"),
        ({"importance": "heldout"}, "Did you mean 'held-out'"),
        ({"fisher": "exact"}, "Expected importance to be held-out for fisher=exact, but got training"),
        (
            {"fisher": "exact", "importance": "held-out"},
            "Expected fisher to be empirical, monte_carlo or batch for text",
        ),
        ({"protection": ("coupling",), "coupling_prior": 0.0}, "Expected prior to be finite and above 0"),
        ({"protection": ("coupling",), "coupling_num_rows": 0}, "Expected num_rows to be at least 1"),
        ({"protection": ("coupling",), "coupling_num_examples": 0}, "Expected num_examples to be at least 1"),
        ({"protection": ("coupling",), "coupling_rule": "merge"}, "Expected rule to be one of sum, ema, replace"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        search_config(**options)


def test_config_round_trip():
    assert SearchConfig.from_dict(json.loads(json.dumps(TINY.to_dict()))) == TINY
    with pytest.raises(InputError, match="Did you mean 'epochs'"):
        SearchConfig.from_dict({"schedule": {"epoch": 3}})


def test_a_checkpoint_of_another_configuration_names_the_options(stored, tmp_path):
    _, snapshots = stored
    (tmp_path / "checkpoint.pt").write_bytes(snapshots[1][CHECKPOINT])
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    other = changed(TINY, units=4, wpl_strength=1.0)
    with pytest.raises(InputError, match=r"space.units 4 \(there 2\), protections.wpl.strength 1.0 \(there 100000.0\)"):
        run(other, checkpoint=checkpoint)


def test_a_checkpoint_older_than_an_option_has_the_default_of_its_space():
    images, text = (search_config(space=space, protection=("ewc",)) for space in ("nas201", "recurrent"))
    assert images.options_of("ewc").strength != text.options_of("ewc").strength
    stored = {**images.to_dict(), "protections": [{"name": "ewc"}]}
    images.expect_own_state({"format": FORMAT, "config": stored}, FORMAT)


def test_the_exact_fisher_is_the_importance_of_wpl_if_asked_for():
    """After one architecture it is the sum over classes, image by image, of those whose importance is held out."""
    options = {"importance": "held-out", "fisher": "exact", "protect_from": 0, "importance_batches": 1}
    config = changed(TINY, **options)
    search = Search(config, load_task(config), SearchArm(0, "wpl"))
    architecture = search.strategy.propose(1)[0]
    search._consolidate(architecture, None)
    weight = search.supernet.classifier.weight
    images, _ = next(search.task.batches("importance"))
    search.supernet.eval()
    total = torch.zeros_like(weight)
    for image in images:
        logits = search.supernet(image.unsqueeze(0), architecture)
        losses, shares = -logits.log_softmax(-1)[0], logits.detach().softmax(-1)[0]
        for loss, share in zip(losses, shares, strict=True):
            total += share * torch.autograd.grad(loss, weight, retain_graph=True)[0].square()
    torch.testing.assert_close(search.protection.plasticity.importance(weight), total / len(images))


def test_coupling_needs_memory_for_its_rows():
    config = changed(TINY, protection=("coupling",))
    task = load_task(config)
    few, many, most = (
        memory_bytes(changed(config, coupling_num_rows=rows, coupling_num_examples=examples), task)
        for rows, examples in ((10, 1), (20, 1), (20, 2))
    )
    assert most - many == many - few > 0  # 10 classes


def test_more_units_than_memory_allows_says_how_much_it_needs():
    with pytest.raises(InputError, match=r"units=2000000, batch_size=\d+ need about \d+\.\d GiB"):
        run(search_config(units=2_000_000))
