"""Killed at any point within an epoch, a derivation or a training, a search ends with the same records, bit for bit."""

import dataclasses
import io
import math

import pytest
import torch

from forgetless import interruption
from forgetless.checkpoints import Checkpoints, seconds_of
from forgetless.errors import InputError
from forgetless.search import SearchConfig, load_task, make_space, reconcile, run
from forgetless.search.scratch import train_from_scratch

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
    "augment": False,
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


def without_time(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def killed_at_every_point(config, step=1):
    """Check a configuration; returns how many points it has."""
    whole = without_time(run(config))
    point, last = 0, None
    while True:
        kept, records, seen = [], [], 0

        def save(state):
            nonlocal seen
            seen += 1
            if seen == point + 1:  # noqa: B023
                kept.append(stored(state))  # noqa: B023
                raise _Killed

        def on_epoch(record, state):
            records.append(record)  # noqa: B023

        try:
            run(config, on_epoch=on_epoch, checkpoints=Checkpoints(save, 0.0))
        except _Killed:
            left = reconcile(config, records, kept[0])
            assert left == records
            again = run(config, records=left, checkpoint=kept[0])
            assert without_time(again) == whole, f"point {point}"
            last = point
        else:
            assert last is not None
            return point
        point += step


SMALL = {
    "images, enas and wpl": (IMAGES | {"protection": ("wpl",), "interference_every": 2, "interference_models": 2}, 5),
    "text with dropout, evolution": (TEXT | {"strategy": "evolution", "protection": ("wpl",), "epochs": 1}, 3),
    "gdas, reset, decayed": (
        IMAGES | {"strategy": "gdas", "protection": ("wpl",), "reset_every": 1, "alpha_decay": 0.5},
        9,
    ),
}


@pytest.mark.parametrize(("options", "step"), SMALL.values(), ids=SMALL)
def test_killed_at_any_point_the_records_are_the_same(options, step, text):
    options = options | ({"data": text} if options["space"] == "recurrent" else {})
    assert killed_at_every_point(SearchConfig(**options), step) > 6


def test_two_arms_and_a_control_go_on_within_the_second():
    config = SearchConfig(**IMAGES | {"protection": ("wpl", "matched-lr"), "epochs": 2, "final_samples": 0})
    assert killed_at_every_point(config, 11) > 10


def test_a_training_from_scratch_goes_on_from_any_step(text):
    config = SearchConfig(**TEXT, data=text)
    task = load_task(config)
    architecture = make_space(config).sample(torch.Generator().manual_seed(1))
    states = []
    options = {"seed": 3, "num_batches": 5}
    whole = train_from_scratch(
        config, task, architecture, **options, on_step=lambda make: states.append(stored(make()))
    )
    assert [state["step"] for state in states] == [1, 2, 3, 4, 5]
    for state in states:
        again = train_from_scratch(config, task, architecture, **options, state=state)
        assert without_time([again]) == without_time([whole])
    lost = dict(states[2], carried=None)  # each part matters: the text's state is one
    assert train_from_scratch(config, task, architecture, **options, state=lost)["test_error"] != whole["test_error"]


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
        SearchConfig(space="nas201", checkpoint_every=text)


def test_a_state_of_another_format_is_refused():
    config = SearchConfig(**IMAGES)
    state = {"format": 1, "config": dataclasses.asdict(config), "arm": {"seed": 0, "protection": "wpl"}}
    with pytest.raises(InputError, match="Expected a state that this version of forgetless wrote, but got format 1"):
        reconcile(config, [], state)
    with pytest.raises(InputError, match="got format None"):
        reconcile(config, [], {**state, "format": None})
    assert math.isfinite(seconds_of(config.checkpoint_every))
