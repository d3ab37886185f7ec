"""Killed at any point within an epoch, a derivation or a training, a search ends with the same records, bit for bit."""

import dataclasses
import io
import math
import os
import signal

import pytest
import torch

from configs import search_config, two_model_config, without_time
from forgetless import interruption
from forgetless.checkpoints import Checkpoints, seconds_of
from forgetless.errors import InputError
from forgetless.experiments import two_model
from forgetless.search import SearchConfig, load_task, make_space, reconcile, run
from forgetless.search.rates import RateConfig
from forgetless.search.scratch import train_from_scratch
from forgetless.search.setup import make_search_space

IMAGES = {
    "space": "nas201",
    "units": 2,
    "epochs": 2,
    "models_per_epoch": 2,
    "batches_per_model": 2,
    "strategy_steps": 2,
    "samples_per_step": 2,
    "final_samples": 3,
    "final_batches": 3,
    "batch_size": 16,
    "evaluation_batches": 1,
    "protect_from": 0,
}
TEXT = IMAGES | {
    "space": "recurrent",
    "nodes": 2,
    "units": 4,
    "num_steps": 5,
    "batch_size": 4,
    "dropout": 0.3,
    "weight_drop": 0.2,
}
CELL = IMAGES | {"space": "cell", "nodes": 2, "units": 2, "augment": True, "models_per_epoch": 1, "final_samples": 2}


class _Killed(Exception):  # noqa: N818
    pass


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder with a text of some hundred words."""
    folder = tmp_path_factory.mktemp("text")
    words = torch.randint(9, (600,), generator=torch.Generator().manual_seed(0)).tolist()
    lines = "\n".join(" ".join(f"w{word}" for word in words[i : i + 10]) for i in range(0, 600, 10))
    for name in ("train", "valid", "test"):
        (folder / f"{name}.txt").write_text(lines)
    return str(folder)


def stored(state):
    """As a checkpoint file gives it back."""
    file = io.BytesIO()
    torch.save(dict(state), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def go_on_with_search(config, records, state):
    left = reconcile(config, records, state)
    assert left == records
    return run(config, records=left, checkpoint=state)


def begin_search(config, records, save):
    run(config, on_epoch=lambda record, _: records.append(record), checkpoints=Checkpoints(save, 0.0))


def go_on_with_two_models(config, records, state):
    return two_model.run(config, finished=records, checkpoint=state).runs


def begin_two_models(config, records, save):
    two_model.run(config, on_run=records.append, checkpoints=Checkpoints(save, 0.0))


def killed_at_every_point(config, step=1):
    """Check a configuration; returns how many points it has."""
    is_search = isinstance(config, SearchConfig)
    begin, go_on = (begin_search, go_on_with_search) if is_search else (begin_two_models, go_on_with_two_models)
    whole = without_time(run(config) if is_search else two_model.run(config).runs)
    point, last = 0, None
    while True:
        kept, records, seen = [], [], 0

        def save(state):
            nonlocal seen
            seen += 1
            if seen == point + 1:  # noqa: B023
                kept.append(stored(state))  # noqa: B023
                raise _Killed

        try:
            begin(config, records, save)
        except _Killed:
            assert without_time(go_on(config, records, kept[0])) == whole, f"point {point}"
            last = point
        else:
            assert last is not None
            return point
        point += step


SMALL = {
    "images, enas and wpl": (IMAGES | {"protection": ("wpl",), "interference_every": 2, "interference_models": 2}, 13),
    "text with dropout, evolution": (TEXT | {"strategy": "evolution", "protection": ("wpl",), "epochs": 1}, 3),
    "gdas, reset, decayed": (
        IMAGES | {"strategy": "gdas", "protection": ("wpl",), "reset_every": 1, "strength_decay": 0.5},
        14,
    ),
}


@pytest.mark.parametrize(("options", "step"), SMALL.values(), ids=SMALL)
def test_killed_at_any_point_the_records_are_the_same(options, step, text):
    options = options | ({"data": text} if options["space"] == "recurrent" else {})
    assert killed_at_every_point(search_config(**options), step) > 6


MODELS = {
    "models": 3,
    "seeds": 1,
    "iterations": 5,
    "iterations_a": 8,
    "evaluate_every": 4,
    "width": 12,
    "convergence": (0.5,),
    "batch_size": 32,
}


def test_two_models_go_on_between_any_two_trainings():
    """A to the end, A to its share, B and C in each arm and in each try of the control."""
    config = two_model_config(**MODELS, protection=("none", "si", "wpl", "matched-lr"), wpl_strength=(1e3,))
    assert killed_at_every_point(config, 3) > 8


def test_each_part_of_the_state_of_two_models_matters():
    config = two_model_config(**MODELS, protection=("si", "none"))
    states = []
    whole = without_time(two_model.run(config, checkpoints=Checkpoints(lambda s: states.append(stored(s)), 0.0)).runs)
    begun = next(state for state in states if state["rest"] is not None)
    rest = begun["rest"]
    other = {name: weight + 0.01 for name, weight in begun["start"][0].items()}
    for lost in (
        {"start": [other, *begun["start"][1:]]},
        {"rest": rest | {"models": [other, *rest["models"][1:]]}},
        {"rest": rest | {"protection": states[1]["watchers"]["si"]}},
        {"rest": rest | {"steps": {"total": 0.0, "count": 0}}},
        {"rest": rest | {"curve": {"iteration": [], "accuracy_a": [], "accuracy_b": []}}},
    ):
        assert without_time(two_model.run(config, checkpoint=begun | lost).runs) != whole, lost.keys()
    assert without_time(two_model.run(config, checkpoint=begun).runs) == whole


def test_an_interruption_stores_the_state_of_the_last_point_between_two_trainings():
    config = two_model_config(**MODELS, protection=("none", "wpl"))
    whole = without_time(two_model.run(config).runs)
    records, kept = [], []

    def interrupt(progress):
        if ": wpl" in progress.label and steps_of(progress) > config.schedule.iterations:  # within C
            raise KeyboardInterrupt

    def steps_of(progress):
        """Steps of B and C within the arm; `done` counts arms."""
        return (progress.done % 1) * 2 * config.schedule.iterations

    checkpoints = Checkpoints(lambda state: kept.append(stored(state)), math.inf)
    with pytest.raises(KeyboardInterrupt):
        two_model.run(config, on_run=records.append, on_progress=interrupt, checkpoints=checkpoints)
    assert len(kept) == 1
    assert len(kept[0]["rest"]["first"]) == 2  # A and B
    trained = []
    again = two_model.run(
        config, finished=records, checkpoint=kept[0], on_progress=lambda p: trained.append(p.done - len(records))
    )
    assert without_time(again.runs) == whole
    assert min(trained) > 0.5  # of the arm, which is B and C


def test_a_state_of_other_two_models_is_refused():
    config, states = two_model_config(**MODELS, protection=("none",)), []
    two_model.run(config, checkpoints=Checkpoints(states.append, 0.0))
    with pytest.raises(InputError, match=r"but got schedule\.iterations 6 \(there 5\)"):
        two_model.run(config.changed({"schedule.iterations": 6}), checkpoint=states[0])
    with pytest.raises(InputError, match="got format None, not 2"):
        two_model.run(config, checkpoint={})


def test_two_arms_and_a_control_go_on_within_the_second():
    config = search_config(**IMAGES | {"protection": ("wpl", "matched-lr"), "epochs": 2, "final_samples": 0})
    assert killed_at_every_point(config, 17) > 10


@pytest.mark.parametrize(("rates", "every"), [(None, None), (RateConfig(schedule="linear"), 3)])
def test_a_training_from_scratch_goes_on_from_any_step(text, rates, every):
    config = search_config(**TEXT, data=text)
    task = load_task(config)
    architecture = make_space(config).sample(torch.Generator().manual_seed(1))
    states = []
    how = (task, make_search_space(config), architecture, config.optimizer)
    options = {"device": "cpu", "seed": 3, "num_batches": 5, "rates": rates, "reset_state_every": every}
    whole = train_from_scratch(*how, **options, on_step=lambda make: states.append(stored(make())))
    assert [state["step"] for state in states] == [1, 2, 3, 4, 5]
    full = config.optimizer.learning_rate
    falling = [full * share for share in ((1, 0.8, 0.6, 0.4, 0.2) if rates else (1,) * 5)]
    assert [state["optimizer"]["param_groups"][0]["lr"] for state in states] == pytest.approx(falling)
    for state in states:
        again = train_from_scratch(*how, **options, state=state)
        assert dataclasses.replace(again, seconds=0) == dataclasses.replace(whole, seconds=0)
    lost = dict(states[3], carried=None)  # each part matters: the text's state is one
    assert train_from_scratch(*how, **options, state=lost).test_error != whole.test_error


def test_points_store_when_it_is_time_and_when_a_signal_asked(monkeypatch):
    now, kept = [0.0], []
    monkeypatch.setattr("forgetless.checkpoints.time.monotonic", lambda: now[0])
    checkpoints = Checkpoints(kept.append, 10.0)
    for second in range(25):
        now[0] = float(second)
        checkpoints.point(lambda second=second: {"second": second})
    assert [state["second"] for state in kept] == [10, 20]
    monkeypatch.setattr(interruption._State, "signal_number", 15)
    with pytest.raises(interruption.Interrupted):
        checkpoints.point(lambda: {"second": "asked"})
    assert kept[-1] == {"second": "asked"}


@pytest.mark.parametrize(
    ("text", "seconds"), [("10min", 600), ("90s", 90), ("2h", 7200), ("1.5 h", 5400), ("0", 0), ("7", 7), ("3 m", 180)]
)
def test_durations(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "ten", "-1s", "1d", "nan", "inf", "1e3s", "5 min 3 s", "9" * 400])
def test_what_is_no_duration(text):
    with pytest.raises(InputError, match="Expected a duration such as 10min"):
        search_config(space="nas201", checkpoint_every=text)


def test_a_state_of_another_format_is_refused():
    config = search_config(**IMAGES)
    state = {"format": 1, "config": config.to_dict(), "arm": {"seed": 0, "protection": "wpl"}}
    with pytest.raises(InputError, match="Expected a state that this version of forgetless wrote, but got format 1"):
        reconcile(config, [], state)
    with pytest.raises(InputError, match="got format None"):
        reconcile(config, [], {**state, "format": None})
    assert math.isfinite(seconds_of(config.resources.checkpoint_every))


def test_a_signal_while_a_state_is_stored_stops_there():
    """Not a step later, of which nothing would be kept."""
    with interruption.handled():
        checkpoints = Checkpoints(lambda _: os.kill(os.getpid(), signal.SIGTERM), 0)
        with pytest.raises(interruption.Interrupted):
            checkpoints.point(dict)
