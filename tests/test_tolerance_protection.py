"""The protection `wpl-tolerance`: what is measured, when, and that the tolerance is kept in both experiments."""

import copy
import dataclasses
import io
import math

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn
from torch.optim import SGD, Adam

from configs import changed, search_config, two_model_config, without_time
from forgetless import diagonal_fisher
from forgetless.errors import InputError
from forgetless.experiments import two_model
from forgetless.experiments.two_model import Arm, TwoModelResult, arms, run
from forgetless.experiments.two_model.mlp import Wiring, chain_of_models, shared_parameters
from forgetless.experiments.two_model.selection import Group, chosen_strength
from forgetless.experiments.two_model.training import Trainer
from forgetless.protection import Evidence, make_protection, tolerance
from forgetless.protection.tolerance import ToleranceWPL
from forgetless.report import accuracy_curves, trade_off
from forgetless.report.two_model.page import summary_table
from forgetless.report.two_model.shown import label_of
from forgetless.search import Search, SearchArm, load_task
from forgetless.training import cpu_arithmetic, train

G = torch.Generator().manual_seed(0)
X = torch.randn(96, 12, generator=G)
Y = X[:, :3].argmax(-1)
HELD_OUT = [(X[64:80], Y[64:80]), (X[80:], Y[80:])]


def batches():
    return [(X[:64], Y[:64])] * 40


def other_batches():
    return [(X[:64], (Y[:64] + 1) % 3)] * 43


def loss_of(model):
    return lambda batch: F.cross_entropy(model(batch[0]), batch[1])


def evidence_of(model, decisions=(), held_out=lambda: HELD_OUT):
    return Evidence(
        fisher=lambda: diagonal_fisher(model, HELD_OUT, F.cross_entropy),
        batches=held_out,
        loss=F.cross_entropy,
        loss_of=lambda: loss_of(model),
        decisions=decisions,
    )


def mean_loss(model):
    """Over all held-out examples, one after the other."""
    with torch.no_grad():
        return float(sum(-model(x).log_softmax(-1)[torch.arange(len(y)), y].sum() for x, y in HELD_OUT)) / 32


def models(number=2):
    return chain_of_models(Wiring.CROSSED, 3, num_models=number, num_inputs=12, num_classes=3, width=16)


def protected(level, *, optimizer=lambda p: Adam(p, lr=0.01), num_measured=2, held_out=lambda: HELD_OUT):
    """A trained and consolidated, B not yet trained."""
    a, b = models()
    protection = ToleranceWPL(shared_parameters([a, b]), strength=level, damping=1e-3, num_measured=num_measured)
    train(batches(), loss_of(a), optimizer(a.parameters()), protection)
    protection.consolidate(a, evidence_of(a, (0,), held_out))
    return a, b, protection


@pytest.mark.parametrize("make", [lambda p: Adam(p, lr=0.01), lambda p: SGD(p, lr=0.1, momentum=0.9)])
@pytest.mark.parametrize("level", [0.003, 0.03])
def test_no_more_than_the_tolerance_is_lost_and_most_of_it_is_used(make, level):
    """The unprotected A loses far more; the measured loss of A is the mean over single examples."""
    lost = {}
    for allowed in (level, 1e6):
        a, b, protection = protected(allowed, optimizer=make)
        before = mean_loss(a)
        train(other_batches(), loss_of(b), make(b.parameters()), protection)
        lost[allowed] = mean_loss(a) - before
        assert protection.increase() == pytest.approx(lost[allowed], rel=1e-5, abs=1e-6)
    assert lost[1e6] > 0.2
    assert 0.3 * level < lost[level] <= level * (1 + 1e-4) + 1e-6


def test_measured_after_some_steps_and_the_last_and_again_where_too_much_was_lost(monkeypatch):
    _, b, protection = protected(0.01)
    increases = iter([0.0, 0.02, 0.015, 0.005, *[0.0] * 10])  # 2 tries too many after the second step
    steps, told = [], []
    monkeypatch.setattr(protection, "increase", lambda: next(increases))
    monkeypatch.setattr(
        protection.plasticity, "calibrate", lambda increase, optimizer: told.append((increase, steps[-1]))
    )
    optimizer = SGD(b.parameters(), lr=0.01)
    optimizer.register_step_pre_hook(lambda *_: steps.append(len(steps) + 1))
    train(other_batches(), loss_of(b), optimizer, protection)
    assert [step for _, step in told] == [1, 2, 2, 2, 4, 8, 10, 20, 30, 40, 43]
    assert [increase for increase, _ in told][:4] == [0.0, 0.02, 0.015, 0.005]


def test_where_nothing_helps_measuring_ends(monkeypatch):
    _, b, protection = protected(0.01)
    counted = []
    monkeypatch.setattr(protection, "increase", lambda: counted.append(1) or math.nan)
    train(other_batches()[:1], loss_of(b), SGD(b.parameters(), lr=0.01), protection)
    assert len(counted) == tolerance._MOST_TRIES
    assert protection.plasticity.budget > 0
    assert all(bool(torch.isfinite(p).all()) for p in b.parameters())


def test_a_tolerance_out_of_reach_is_plain_training_bit_for_bit():
    """With measurements: they touch neither weights nor random numbers, modes, gradients or batch statistics."""

    def trunk_and_heads():
        with torch.random.fork_rng():
            torch.manual_seed(1)
            trunk = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
            return [nn.Sequential(trunk, nn.Linear(8, 3)) for _ in range(2)]

    results = []
    for name, options in (("none", {}), ("wpl-tolerance", {"strength": 1e6})):
        a, b = trunk_and_heads()
        a[0][1].eval()  # one part is in another mode than the rest
        a[1].bias.requires_grad_(False)
        protection = make_protection(name, list(a[0].parameters()), **options)
        evidence = dataclasses.replace(
            evidence_of(a), fisher=lambda a=a: {n: torch.ones_like(p) for n, p in a.named_parameters()}
        )
        protection.consolidate(a, evidence)
        torch.manual_seed(2)
        train(other_batches(), loss_of(b), SGD(b.parameters(), lr=0.1), protection)
        assert [m.training for m in a[0]] == [True, False, True, True]
        assert [p.requires_grad for p in a.parameters()] == [True] * 5 + [False]
        assert a[1].weight.grad is None
        results.append([*b.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))


def test_the_newest_models_are_measured_and_of_these_the_one_that_lost_most():
    chain = models(4)
    protection = ToleranceWPL(shared_parameters(chain), strength=0.01, num_measured=2)
    for j in (0, 1, 2, 1):
        protection.consolidate(chain[j], evidence_of(chain[j], (j,)))
    assert protection.measured == [(2,), (1,)]
    before = [mean_loss(model) for model in chain]
    with torch.no_grad():
        for p in protection.shared_parameters:
            p.add_(0.3 * torch.randn(p.shape, generator=G))
    grown = [mean_loss(model) - old for model, old in zip(chain, before, strict=True)]
    assert protection.increase() == pytest.approx(max(grown[1], grown[2]), abs=1e-6)
    protection.reset()
    assert (protection.measured, protection.increase()) == ([], 0.0)


def test_a_model_that_has_diverged_is_not_measured():
    a, b, protection = protected(0.01)
    with torch.no_grad():
        b.classifier.weight.fill_(math.nan)
    ones = {name: torch.ones_like(p) for name, p in b.named_parameters()}
    protection.consolidate(b, dataclasses.replace(evidence_of(b, (1,)), fisher=lambda: ones))
    assert protection.measured == [(0,)]
    with torch.no_grad():
        a.classifier.weight.fill_(math.inf)
    assert math.isnan(protection.increase())


def test_only_the_first_batches_are_measured():
    taken = []

    def held_out():
        for _ in range(5):
            taken.append(1)
            yield X[:32].repeat(20, 1), Y[:32].repeat(20)

    protected(0.01, held_out=held_out)
    assert len(taken) == 2  # of 640 examples each


def test_the_penalty_is_that_of_the_multiplier():
    a, b, protection = protected(0.003)
    train(other_batches(), loss_of(b), Adam(b.parameters(), lr=0.01), protection)
    held = protection.plasticity
    quadratic = sum(
        float((held.importance(p) * (p.detach() - held.anchor(p)).square()).sum()) for p in protection.shared_parameters
    )
    assert held.alpha > 0
    assert protection.penalty() == pytest.approx(held.alpha / 2 * quadratic, rel=1e-4)
    assert all(p.requires_grad for p in a.parameters())


def test_what_is_refused():
    with pytest.raises(InputError, match="Expected num_measured to be at least 0, but got -1"):
        ToleranceWPL([], strength=0.01, num_measured=-1)
    for level in (0.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=f"Expected .* above 0, but got {level}"):
            ToleranceWPL([], strength=level)
    _, _, protection = protected(0.01)
    for level in (0.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=f"Expected tolerance to be finite and above 0, but got {level}"):
            protection.strength = level
    twin = ToleranceWPL(protection.shared_parameters, strength=0.01)
    with pytest.raises(InputError, match="Expected a way to recall 1 earlier models, but got none"):
        twin.load_state_dict(protection.state_dict())
    with pytest.raises(InputError, match=r"Expected .* above 0, but got 0\.0"):
        search_config(protection=("wpl-tolerance",), wpl_tolerance_strength=0.0)
    with pytest.raises(InputError, match="Expected batches_per_model to be at least 2"):
        search_config(protection=("wpl-tolerance",), batches_per_model=1)


# ---- two models ------------------------------------------------------------------------------------------------------

SMALL = {
    "protection": ("none", "wpl-tolerance"),
    "wpl_tolerance_strength": (0.01, 0.1),
    "convergence": (1.0, 0.6),
    "seeds": 1,
    "iterations": 60,
    "iterations_a": 80,
    "evaluate_every": 60,
    "width": 24,
}


@pytest.mark.parametrize(("wiring", "shared"), [("crossed", 3), ("prefix", 2)])
def test_in_two_models_the_tolerance_is_kept_on_the_importance_split(wiring, shared, monkeypatch):
    """Strict and stopped early; measured from outside, on the split that the protection measures on."""
    lost = {}
    train_rest = Trainer._train_rest

    def watched(trainer, arm, rate):
        record = train_rest(trainer, arm, rate)
        images, labels = next(trainer.task.batches("importance"))
        after = F.cross_entropy(trainer.models[0](images), labels).item()
        trainer.models[0].load_state_dict(trainer.start[0])
        lost[arm] = after - F.cross_entropy(trainer.models[0](images), labels).item()
        return record

    monkeypatch.setattr(Trainer, "_train_rest", watched)
    config = two_model_config(**SMALL, wiring=wiring, shared=(shared,))
    result = run(config)
    assert list(lost) == arms(config)
    for arm, increase in lost.items():
        if arm.protection == "wpl-tolerance":
            assert increase <= arm.strength * (1 + 1e-3) + 1e-5
    if wiring == "crossed":
        assert lost[Arm(0, shared, 1.0, "none", None)] > 0.2
        assert lost[Arm(0, shared, 1.0, "wpl-tolerance", 0.1)] > 0.03
    for run_ in result.runs:
        assert run_.loss_a_before > 0
        assert run_.validation_loss_a_after > 0
    assert len({r.loss_a_after for r in result.runs if r.convergence == 1}) == 3


def test_records_have_the_mean_cross_entropy_of_the_whole_split():
    config = two_model_config(protection=("none",), seeds=1, iterations=2, iterations_a=80, width=24)
    task = two_model.load_task(config)
    trainer = Trainer(config, task, arms(config)[0])
    with torch.no_grad():
        for split, found in trainer._losses(trainer.models[0]).items():
            pairs = list(task.batches(split, 7))
            each = torch.cat([F.cross_entropy(trainer.models[0](x), y, reduction="none") for x, y in pairs])
            assert found == pytest.approx(each.double().mean().item(), rel=1e-5)
    assert run(config).runs[0].loss_a_before == trainer._losses(trainer.models[0])["test"]


def test_tolerances_are_called_so_in_labels_tables_and_figures():
    changes = {"protection": ("none", "wpl", "wpl-tolerance"), "iterations": 4, "convergence": (1.0,)}
    config = two_model_config(**SMALL | changes)
    result: TwoModelResult = run(config)
    assert [arm.label for arm in arms(config)] == [
        "none",
        "wpl α=100000",
        "wpl-tolerance tolerance=0.01",
        "wpl-tolerance tolerance=0.1",
    ]
    label = label_of(Group("wpl-tolerance", 0.1, []))
    assert label.replace("\N{NO-BREAK SPACE}", " ") == "limited weight plasticity, tolerance = 0.1"
    assert chosen_strength(result, "wpl-tolerance") in {0.01, 0.1}
    console = Console(file=io.StringIO(), width=80)
    console.print(summary_table(result))
    text = console.file.getvalue()
    assert "strength" in text.splitlines()[1]
    assert "Bold: the tolerance with the best" in text
    figure = trade_off(result, "wpl-tolerance")
    words = " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))
    assert "tolerance (nats) of limited weight plasticity" in words
    assert "α" not in words
    assert accuracy_curves(result) is not None


# ---- searches --------------------------------------------------------------------------------------------------------

SEARCH = search_config(
    space="nas201",
    protection=("wpl-tolerance",),
    wpl_tolerance_strength=1e-4,
    epochs=2,
    models_per_epoch=3,
    batches_per_model=3,
    strategy_steps=1,
    samples_per_step=2,
    final_samples=0,
    units=2,
    batch_size=16,
    importance_batches=1,
    evaluation_batches=1,
    protect_from=0,
    learning_rate=0.5,
    interference_every=1,
    interference_models=2,
)


def test_in_a_search_it_goes_on_bit_for_bit_and_interference_leaves_it_alone():
    config, task = SEARCH, load_task(SEARCH)
    arm = SearchArm(0, "wpl-tolerance")

    def epoch(search):
        return without_time([search.one_epoch({}, lambda phase, values: None)])

    with cpu_arithmetic(1, flush_denormals=True):
        torch.manual_seed(0)
        search = Search(config, task, arm)
        epoch(search)
        assert search.protection.measured
        assert search.protection.plasticity.budget < 1e-4  # something was lost and calibrated for
        state, lost = copy.deepcopy(search.state_dict()), search.protection.increase()
        sample = [search.strategy.space.sample(G) for _ in range(2)]
        search.interference(sample, 1)
        for key in ("alpha", "tolerance", "budget"):
            assert search.protection.state_dict()["plasticity"][key] == state["protection"]["plasticity"][key]
        expected = epoch(search)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        again = Search(config, task, arm)
        again.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
        assert again.protection.measured == [tuple(decisions) for decisions, _ in state["protection"]["measured"]]
        assert all(first > 1 for _, first in state["protection"]["measured"])  # nats, close to guessing
        assert again.protection.increase() == lost
        assert epoch(again) == expected


def test_the_tolerance_does_not_decay_in_a_search():
    config = changed(SEARCH, strength_decay=0.5, interference_every=0, models_per_epoch=1)
    search = Search(config, load_task(config), SearchArm(0, "wpl-tolerance"))
    for _ in range(2):
        search.one_epoch({}, lambda phase, values: None)
    assert search.protection.strength == 1e-4
