"""Fine-tuning under protections: arms, what they may see, and the same numbers from wherever it was interrupted."""

import dataclasses
import io
import json
import math
import re
import shutil

import pytest
import torch
from torch import nn
from torch.optim import SGD

from configs import fine_tune_config, without_time
from forgetless.checkpoints import Checkpoints
from forgetless.cli import main
from forgetless.errors import InputError
from forgetless.experiments.fine_tune import FineTuneResult, arms, load_texts, run
from forgetless.experiments.fine_tune.past import examples_of_the_past
from forgetless.experiments.fine_tune.pretraining import falling
from forgetless.experiments.fine_tune.running import check
from forgetless.experiments.fine_tune.training import Trainer

SIZES = {"layers": 1, "width": 16, "heads": 2, "context": 8, "num_tokens": 200}
SIZES |= {"steps": 6, "pretraining": 12, "batch_size": 4, "evaluate_every": 4, "samples": 6, "seeds": 1}
EVERY = {
    "protection": ("none", "wise-ft", "wpl", "replay", "lwf"),
    "wise_ft_strength": (0.25, 0.75),
    "wpl_strength": (1e4,),
    "on": ("own-samples", "old-data", "new-inputs"),
}


def config_of(texts, **options):
    """The configuration of a quick run from the small texts."""
    return fine_tune_config(**{"old": f"{texts}/old", "to": (f"{texts}/new",), **SIZES, **options})


def copied(texts, path, **changed):
    """The two texts with another content of some files, such as old_test."""
    shutil.copytree(texts, path)
    for name, lines in changed.items():
        (path / name.replace("_", "/")).with_suffix(".txt").write_text("\n".join(lines), encoding="utf-8")
    return path


def told(records, *names):
    return [tuple(getattr(record, name) for name in names) for record in records]


@pytest.fixture(scope="module")
def result(two_texts):
    return run(config_of(two_texts, **EVERY, seeds=2))


# ---- arms --------------------------------------------------------------------------------------------------------


def test_every_arm_is_run_once(result):
    made = [record.arm for record in result.runs]
    assert made == arms(result.config)
    # none, wise-ft at 2, wpl on 3, replay on 3, lwf: only what asks for the past has an arm for each kind of it
    assert len(made) == 2 * (1 + 2 + 3 + 3 + 1)
    assert {record.on for record in result.runs if record.protection in {"none", "wise-ft", "lwf"}} == {None}
    assert result.progress == (len(made), len(made))


def test_arms_of_a_seed_start_from_one_model_and_differ_afterwards(result):
    for seed in (0, 1):
        mine = [record for record in result.runs if record.seed == seed]
        assert len(set(told(mine, "old_before", "new_before"))) == 1
        assert len({(record.curve.old[0], record.curve.new[0]) for record in mine}) == 1
        assert len(set(told(mine, "old_after"))) == len(mine)
    assert len(set(told(result.runs, "old_before"))) == 2


def test_the_numbers_of_a_record_agree(result):
    for record in result.runs:
        assert record.steps == 6
        added = [6] if record.protection == "wise-ft" else []
        assert record.curve.step == [0, 1, 2, 4, 6, *added]
        # Both texts are shorter than what is measured, so that curve and ends are over the same windows.
        assert (record.curve.old[0], record.curve.old[-1]) == pytest.approx((record.old_before, record.old_after))
        assert record.curve.new[-1] == pytest.approx(record.new_after)
        assert record.increase == record.old_after - record.old_before
        assert math.isfinite(record.expected_loss_increase) == (record.on is not None)
    passes = {record.protection: record.passes for record in result.runs}
    assert passes["replay"] == 2
    assert passes["none"] == passes["wise-ft"] == passes["wpl"] == 1


def test_the_time_to_make_examples_of_the_past_counts_once(two_texts, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("forgetless.experiments.fine_tune.training.time.perf_counter", lambda: now[0])

    def slow(*given):
        now[0] += 100
        return examples_of_the_past(*given)

    monkeypatch.setattr("forgetless.experiments.fine_tune.training.examples_of_the_past", slow)
    made = run(config_of(two_texts, protection=("replay", "wpl"), wpl_strength=(1.0,)))
    assert [record.seconds for record in made.runs] == [100, 100]


def test_a_strong_pull_keeps_what_plain_training_changes(result):
    by_arm = {(r.seed, r.protection, r.on, r.strength): r for r in result.runs}
    for seed in (0, 1):
        plain = by_arm[seed, "none", None, None]
        assert plain.new_after < plain.new_before
        held = by_arm[seed, "wpl", "own-samples", 1e4]
        assert abs(held.new_after - held.new_before) < 0.5 * abs(plain.new_after - plain.new_before)
        ways = [abs(by_arm[seed, "wise-ft", None, w].new_after - plain.new_before) for w in (0.25, 0.75)]
        assert abs(plain.new_after - plain.new_before) > ways[0] > ways[1]


def test_later_seeds_alone_give_the_same_numbers(result):
    later = run(result.config.changed({"run.seeds": 1, "run.first_seed": 1}))
    assert without_time(later.runs) == without_time([record for record in result.runs if record.seed == 1])


def test_strengths_from_one_training_are_those_of_separate_ones(result, two_texts, monkeypatch):
    trainings = []
    fine_tune = Trainer._fine_tune
    monkeypatch.setattr(Trainer, "_fine_tune", lambda *each: trainings.append(each[1]) or fine_tune(*each))
    both = run(config_of(two_texts, protection=("wise-ft",), wise_ft_strength=(0.25, 0.75))).runs
    assert len(trainings) == 1
    alone = [run(config_of(two_texts, protection=("wise-ft",), wise_ft_strength=(w,))).runs[0] for w in (0.25, 0.75)]
    assert without_time(both) == without_time(alone)
    known = [r for r in result.runs if r.seed == 0 and r.protection == "wise-ft"]
    assert without_time(both) == without_time(known)


def test_equal_time_gives_fewer_steps_to_steps_that_cost_more(two_texts):
    config = config_of(two_texts, protection=("none", "replay"), equal_time=True, steps=9)
    assert [(record.protection, record.steps) for record in run(config).runs] == [("none", 9), ("replay", 4)]


def test_several_new_texts_are_panels_of_one_pretraining(two_texts, tmp_path):
    other = copied(two_texts, tmp_path / "texts")
    records = run(config_of(two_texts, to=(f"{two_texts}/new", f"{other}/new"), protection=("none",))).runs
    assert [record.to for record in records] == [f"{two_texts}/new", f"{other}/new"]
    one, same = ({**each, "to": ""} for each in without_time(records))
    assert one == same


def test_a_rate_that_falls_ends_just_above_zero():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = SGD([weight], lr=1.0)
    fall, rates = falling(optimizer, 4), []
    for step in range(1, 5):
        rates.append(optimizer.param_groups[0]["lr"])
        fall(step)
    assert rates == pytest.approx([1, 3 / 4, 2 / 4, 1 / 4])


# ---- what an arm may see -------------------------------------------------------------------------------------------


def test_the_old_test_text_changes_nothing_but_the_reported_loss(result, two_texts, tmp_path):
    """Nothing is chosen, held or trained by it; the same of the new test and validation texts."""
    lines = (two_texts / "new" / "train.txt").read_text(encoding="utf-8").splitlines()[:20]
    other = copied(two_texts, tmp_path / "texts", old_test=lines, new_test=lines, new_valid=lines)
    asked = EVERY | {"on": ("own-samples",)}
    again = run(config_of(other, **asked)).runs
    first = [r for r in result.runs if r.seed == 0 and r.on in {None, "own-samples"}]
    assert told(again, "protection", "strength") == told(first, "protection", "strength")
    assert [str(each) for each in told(again, "expected_loss_increase")] == [
        str(each) for each in told(first, "expected_loss_increase")
    ]
    assert not set(told(again, "old_after")) & set(told(first, "old_after"))
    assert not set(told(again, "new_after")) & set(told(first, "new_after"))
    weights = []
    for texts in (two_texts, other):
        config = config_of(texts, **asked)
        trainer = Trainer(config, load_texts(config), 0)
        each = [(arm, config.options_of(arm.protection, arm.strength)) for arm in arms(config)]
        made = [trainer._fine_tuned(arm, options).model for arm, options in each if not options.kind.acts_after]
        weights.append([torch.cat([weight.flatten() for weight in model.parameters()]) for model in made])
    assert all(map(torch.equal, *weights))


def test_only_old_data_reads_the_importance_text(result, two_texts, tmp_path):
    lines = (two_texts / "old" / "train.txt").read_text(encoding="utf-8").splitlines()
    # Importance is the tail of the training file; what is trained on stays.
    other = copied(two_texts, tmp_path / "texts", old_train=[*lines[:285], *lines[:15]])
    again = run(config_of(other, protection=("replay",), on=EVERY["on"])).runs
    first = [record for record in result.runs if record.seed == 0 and record.protection == "replay"]
    for one, same in zip(first, again, strict=True):
        assert (one.old_after == same.old_after) == (one.on != "old-data"), one.arm


@pytest.fixture(scope="module")
def trainer(two_texts):
    config = config_of(two_texts)
    return Trainer(config, load_texts(config), 0)


def halves_of(trainer, on, num_seen=6):
    texts = trainer.texts
    (new,) = texts.new.values()
    first = texts.start.language.first
    generator = torch.Generator().manual_seed(0)
    return examples_of_the_past(on, trainer.model, texts.old, new, first, num_seen, generator)


@pytest.mark.parametrize("on", ["own-samples", "old-data", "new-inputs"])
@pytest.mark.parametrize("num_seen", [1, 5, 6])
def test_halves_of_the_past_share_no_window(trainer, on, num_seen):
    halves = halves_of(trainer, on, num_seen)
    for half in (halves.seen, halves.unseen):
        assert half.inputs.shape == half.targets.shape == (num_seen, 8)
    seen, unseen = ({tuple(row) for row in half.inputs.tolist()} for half in (halves.seen, halves.unseen))
    assert not seen & unseen
    assert len(seen) == num_seen
    sizes = [len(inputs) for inputs, _ in halves.seen.batches(4)]
    assert sizes == [4] * (num_seen // 4) + [num_seen % 4] * (num_seen % 4 > 0)


def test_own_samples_are_texts_from_their_first_token_cut_in_two(trainer):
    seen = halves_of(trainer, "own-samples").seen
    first = trainer.texts.start.language.first
    assert seen.inputs[0::2, 0].tolist() == [first] * 3
    assert torch.equal(seen.inputs[:, 1:], seen.targets[:, :-1])
    # The middle of a text is predicted by one window and begins the next.
    assert torch.equal(seen.inputs[1::2, 0], seen.targets[0::2, -1])


def test_targets_of_old_data_follow_and_those_of_new_inputs_are_drawn(trainer):
    old = halves_of(trainer, "old-data").seen
    assert torch.equal(old.inputs[:, 1:], old.targets[:, :-1])
    many = halves_of(trainer, "new-inputs", 300).seen
    assert not torch.equal(many.inputs[:, 1:], many.targets[:, :-1])
    with torch.no_grad():
        expected = trainer.model(many.inputs).softmax(-1).flatten(0, 1).mean(0)
    found = torch.bincount(many.targets.flatten(), minlength=len(expected)) / many.targets.numel()
    assert float((found - expected).abs().sum()) < 0.25  # of 2; another distribution over 200 tokens is near 1


# ---- interrupted, and in a folder ----------------------------------------------------------------------------------


class _Killed(Exception):  # noqa: N818
    pass


def stored(state):
    """As a checkpoint file gives it back."""
    file = io.BytesIO()
    torch.save(dict(state), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_killed_at_any_point_the_records_are_the_same(two_texts):
    """After pretraining, between the strengths of one training, and after the last arm."""
    config = config_of(two_texts, protection=("wise-ft", "replay"), wise_ft_strength=(0.25, 0.75))
    whole = without_time(run(config).runs)
    for point in range(4):
        records, states = [], []

        def save(state):
            states.append(stored(state))  # noqa: B023
            if len(states) == point + 1:  # noqa: B023
                raise _Killed

        with pytest.raises(_Killed):
            run(config, on_run=records.append, checkpoints=Checkpoints(save, 0.0))
        assert len(records) == max(0, point - 1)  # the first point is after pretraining; an arm is told after its own
        again = run(config, finished=records, checkpoint=states[-1]).runs
        assert without_time(again) == whole, point


def test_a_pretraining_that_is_stored_is_not_repeated(two_texts, monkeypatch):
    config, states, told = config_of(two_texts, protection=("none",)), [], []
    run(config, checkpoints=Checkpoints(lambda state: states.append(stored(state)), 0.0), on_progress=told.append)
    assert [each.label for each in told][:2] == ["seed 0: pretraining", "seed 0: " + arms(config)[0].label]
    assert told[-1].done == 1
    monkeypatch.setattr(Trainer, "_pretrain", lambda self: pytest.fail("pretrained again"))
    run(config, checkpoint=states[0])


def test_a_state_of_another_configuration_is_refused(two_texts):
    config, states = config_of(two_texts, protection=("none",)), []
    run(config, checkpoints=Checkpoints(states.append, 0.0))
    with pytest.raises(InputError, match=r"Expected the configuration of the checkpoint, but got .*steps"):
        run(config.changed({"schedule.steps": 7}), checkpoint=states[0])
    with pytest.raises(InputError, match="Expected a state that this version of forgetless wrote"):
        run(config, checkpoint={})


def words_of(texts, *more):
    sizes = [word for name, value in SIZES.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["fine-tune", "--old", f"{texts}/old", "--to", f"{texts}/new", *sizes, *more]


@pytest.mark.usefixtures("without_pictures")
def test_the_command_prints_json_resumes_and_overwrites(two_texts, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = words_of(two_texts, "--protection", "none", "wpl", "--output", "run")
    assert main([*words, "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert [run["protection"] for run in said["runs"]] == ["none", "wpl"]
    assert [entry["protection"] for entry in said["summary"]] == ["none", "wpl"]
    assert main(words) == 2
    assert "run" in capfd.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text(lines[0])
    assert main(["resume", "run"]) == 0
    timeless = {"seconds": 0, "digest": ""}
    again = [json.loads(line) | timeless for line in metrics.read_text().splitlines()]
    assert again == [json.loads(line) | timeless for line in lines]


# ---- bad input -----------------------------------------------------------------------------------------------------


BAD = {
    "unknown text": (("--to", "nowhere"), "to be one of kjv-ot, .*, but got 'nowhere'"),
    "unknown protection": (("--protection", "wpi"), "wpi"),
    "unknown evidence": (("--on", "nothing"), "nothing"),
    "no tolerance": (("--protection", "wpl-tolerance", "--wpl-tolerance.strength", "0"), "tolerance above 0, but got"),
    "too much tolerance": (
        ("--protection", "wpl-tolerance", "--wpl-tolerance.strength", "6"),
        r"wpl-tolerance\.strength below the loss of guessing, 5\.3 nats per token, but got 6",
    ),
    "a control arm": (("--protection", "wpl", "matched-lr"), "matched-lr tries several learning rates"),
    "one that watches": (("--protection", "si"), "si has to see the pretraining"),
    "no model": (("--model", "nowhere"), "nowhere"),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_before_training(words, message, two_texts, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words_of(two_texts, *words, "--output", "run")) == 2
    error = capfd.readouterr().err
    assert len(error.splitlines()) == 1
    assert error.count("Expected") + error.count("Invalid") == 1
    assert re.search(message, error), error
    assert not (tmp_path / "run").exists()


def test_texts_that_do_not_fit_are_refused(two_texts, tmp_path):
    chinese = copied(two_texts, tmp_path / "chinese", new_train=["起初神创造天地"] * 50)
    with pytest.raises(InputError, match=r"shares its vocabulary with the model, but 100 % of new are unknown"):
        check(config_of(chinese))
    short = copied(two_texts, tmp_path / "short", new_test=["a b", "c"])
    with pytest.raises(InputError, match=r"at least 33 tokens of test text for a context of 32, but new has"):
        check(config_of(short, context=32))
    with pytest.raises(InputError, match=r"Expected 90000 word pieces .* Choose another num_tokens, or a longer"):
        check(config_of(two_texts, num_tokens=90_000))
    with pytest.raises(InputError, match=r"a model that fits .* GiB of memory, but layers=1, width=1000000, .* need"):
        check(config_of(two_texts, width=1_000_000))
    with pytest.raises(InputError, match="Expected width to be a multiple of heads, but got 16 and 3"):
        config_of(two_texts, heads=3)
    with pytest.raises(InputError, match="Expected new texts other than the old one"):
        config_of(two_texts, to=(f"{two_texts}/old",))
    with pytest.raises(InputError, match="Expected at least one new text"):
        config_of(two_texts, to=())
    with pytest.raises(InputError, match="Expected on to be one of own-samples, old-data, new-inputs, but got 'x'"):
        config_of(two_texts, on=("x",))


def test_a_budget_above_the_loss_is_refused_when_that_is_known(two_texts):
    config = config_of(two_texts, protection=("wpl-tolerance",), wpl_tolerance_strength=(5.25,), pretraining=40)
    check(config)  # below that of guessing
    with pytest.raises(InputError, match=r"below the loss of the model on the old text, .*, but got 5\.25"):
        run(config)


# ---- summary -------------------------------------------------------------------------------------------------------


def test_the_summary_says_who_is_dominated(result):
    changes = {"wpl": {"old_after": 1.0, "new_after": 3.0}, "none": {"old_after": 2.0, "new_after": 4.0}}
    runs = [
        dataclasses.replace(run, old_before=1.0, **changes[run.protection])
        for run in result.runs
        if run.protection in changes and run.on in {None, "own-samples"}
    ]
    summary = FineTuneResult.of(result.config, runs).summary()
    assert [(each.protection, each.is_dominated) for each in summary] == [
        ("none", True),
        ("wpl", False),
    ]
    assert summary[0].old_increase.mean == 1
    assert summary[0].num_seeds == 2
    # As good on one text is not dominated.
    runs[0] = dataclasses.replace(runs[0], new_after=2.0)
    assert not FineTuneResult.of(result.config, runs).summary()[0].is_dominated


def test_what_diverged_is_in_no_mean(result):
    runs = [run for run in result.runs if run.protection == "none"]
    found = FineTuneResult.of(result.config, [dataclasses.replace(runs[0], old_after=math.nan), runs[1]])
    assert found.diverged[0].arm == runs[0].arm
    (entry,) = found.summary()
    assert (entry.num_seeds, entry.num_diverged) == (1, 1)
    assert entry.old_increase.mean == runs[1].increase
