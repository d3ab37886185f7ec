"""Records that are whole, but not those of their run."""

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import comparison_config, judged_search
from forgetless.comparison import Measure, read_failures
from forgetless.comparison.records import ComparisonSummary
from forgetless.errors import InputError
from forgetless.evaluation.config import EvaluationConfig
from forgetless.evaluation.records import (
    Evaluation,
    FailedTraining,
    JudgedBy,
    JudgedSearch,
    Valued,
    load_evaluation,
)
from forgetless.experiments import load_result
from forgetless.experiments.two_model import arms
from forgetless.records import plain
from forgetless.runs import EVALUATION, RunFolder, read_sealed, write_sealed
from forgetless.schema import Measured, Number, _predicate, mismatch
from test_report import made_up as made_up_two_model
from test_report_comparison import result_of as made_up_comparison
from test_report_search import made_up as made_up_search


def without(record, key):
    return {name: value for name, value in record.items() if name != key}


def at(records, index, **changes):
    return [*records[:index], {**records[index], **changes}, *records[index + 1 :]]


DAMAGED = {
    "two-model": {
        "doubled": (lambda r: [*r[:2], r[1]], "line 3 .* again"),
        "of no seed": (lambda r: at(r, 1, seed=7), "line 2 .* seed 7"),
        "of another strength": (lambda r: at(r, -1, strength=3.0), "configuration asks for"),
        "a key too few": (lambda r: [without(r[0], "mean_step")], "line 1 of .* it lacks mean_step"),
        "a key too many": (lambda r: at(r, 0, extra=1), "it has 'extra', which nothing writes"),
        "a key too few below": (lambda r: at(r, 0, curve={}), r"it lacks accuracy_a, accuracy_b, iteration in curve"),
        "text": (lambda r: at(r, 0, accuracy_b="0.5"), r"accuracy_b is '0\.5' where float \| None is expected"),
        "a truth": (lambda r: at(r, 0, seed=False), "seed is False where int is expected"),
        "a fraction": (lambda r: at(r, 0, seed=0.5), r"seed is 0\.5 where int is expected"),
    },
    "search": {
        "doubled": (lambda r: [r[0], r[0]], "line 2 of .*Expected|line 2 of"),
        "an epoch left out": (lambda r: [r[0], r[2]], "Expected epoch 1 of .* in line 2 of .* but got epoch 2"),
        "the first left out": (lambda r: r[1:], "Expected epoch 0 of .* in line 1 of .* but got epoch 1"),
        "epochs exchanged": (lambda r: [r[1], r[0], *r[2:]], "Expected epoch 0 of"),
        "of no seed": (lambda r: at(r, 0, seed=99), "the epoch of seed 99 under"),
        "of no protection": (lambda r: at(r, 0, protection="ogl"), "under ogl"),
        "derived too early": (
            lambda r: [next(x for x in r if x["event"] == "derived")],
            "all .* epochs before",
        ),
        "an unknown event": (lambda r: at(r, 0, event="epok"), "its event is 'epok'"),
        "an unknown key": (lambda r: at(r, 0, reward=1.0), "it has 'reward'"),
        "of the strategy": (lambda r: at(r, 0, strategy_x="y"), "strategy_x|it is 'y' where"),
        "a list": (lambda r: at(r, 0, forgetting_mean=[1]), r"forgetting_mean is \[1\] where"),
        "no epoch": (lambda r: [without(r[0], "error_first")], "it lacks error_first"),
    },
}
MADE_UP = {"two-model": lambda: made_up_two_model(seeds=2), "search": made_up_search}


@pytest.mark.parametrize(
    ("experiment", "name"), [(experiment, name) for experiment, damages in DAMAGED.items() for name in damages]
)
def test_records_of_no_such_run_are_refused_by_line(tmp_path, experiment, name):
    damage, message = DAMAGED[experiment][name]
    result = MADE_UP[experiment]()
    records = plain(result.runs if experiment == "two-model" else result.records)
    folder = RunFolder.create(tmp_path / "run", {"experiment": experiment, **result.config.to_dict()})
    folder.replace_records(records)
    load_result(folder)
    folder.replace_records(damage(copy.deepcopy(records)))
    with pytest.raises(InputError, match=message):
        load_result(RunFolder(folder.path))


def test_failures_of_no_search_of_a_comparison_are_refused(tmp_path):
    config = comparison_config(strategy=("enas",), seeds=10)
    folder = RunFolder.create(tmp_path / "run", {"experiment": "compare", **config.to_dict()})
    folder.append({"event": "failed", "unit": f"{config.strategy_names[0]}/seed-0", "reason": "no luck"})
    assert list(read_failures(folder, config).values()) == ["no luck"]
    folder.append({"event": "failed", "unit": "enas/seed-99", "reason": "no luck"})
    with pytest.raises(InputError, match=r"line 2 of .*, but got 'enas/seed-99'"):
        read_failures(folder, config)


@pytest.mark.parametrize(
    ("value", "kind", "fits"),
    [
        (1, float, True),
        (True, float, False),
        (True, int, False),
        (1.0, int, False),
        (float("nan"), float, False),
        (None, Number, True),
        ("1", Number, False),
        ([1, 2], list[int], True),
        ([1, "2"], list[int], False),
        ({"a": 1}, dict[str, float], True),
        ({"a": None}, dict[str, float], False),
        (["a", None], tuple[str, Number], True),
        (["a"], tuple[str, Number], False),
        ("a", list[str], False),
    ],
)
def test_types(value, kind, fits):
    assert (mismatch(value, kind) is None) == fits


def test_every_arm_of_a_configuration_is_allowed_once():
    result = made_up_two_model(seeds=2)
    assert len(result.runs) == len(set(arms(result.config)))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "seed"]), below, max_size=3),
    max_leaves=6,
)


@dataclass(frozen=True)
class _Made:
    a: Measured
    b: list[tuple[str, Number]] | None = None
    seed: dict[str, float] | None = None


KINDS = [
    _Made,
    Number,
    Measured,
    float,
    int,
    str,
    bool,
    list[Number],
    dict[str, float],
    tuple[int, ...],
    Literal["a", 1],
    None,
]


@given(VALUES, st.sampled_from([*KINDS, list[_Made], int | str, tuple[str, Number]]))
def test_the_fast_check_says_what_the_one_with_words_says(value, kind):
    assert _predicate(kind)(value) == (mismatch(value, kind) is None)


# What searches are judged by, and how they compare

RESULTS = Path(__file__).parents[1] / "results"


def test_a_committed_evaluation_is_read_and_written_as_it_was():
    """It is of an older version, whose options had two more, without rules that need no search and without ceilings."""
    path = RESULTS / "compare" / "nas201-digits" / "enas" / "seed-0" / EVALUATION
    digest = RunFolder(path.parent).header.digest
    found = load_evaluation(path, digest)
    later = {"baselines": [], "beats": [], "undefined": []}
    stored = read_sealed(path, digest)
    assert found.to_dict() == stored | later | {"about": stored["about"] | {"ceiling": None}}
    assert {"workers", "cluster"} < found.about.options.keys()
    asked = {name: value for name, value in found.about.options.items() if name not in {"workers", "cluster"}}
    assert found.about.was_asked_for(EvaluationConfig(**asked))
    assert not found.about.was_asked_for(EvaluationConfig(**asked | {"top": asked["top"] + 1}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda found: without(found, "summary"), "Expected an evaluation in .*, but it lacks summary"),
        (lambda found: {**found, "searches": [{}]}, r"it lacks .*run.* in searches\[0\]"),
        (lambda found: {**found, "failures": [["a", "b", "c"]]}, r"failures\[0\]\[1\] is 'b' where int is expected"),
        (lambda found: {**found, "about": {**found["about"], "top": 1.5}}, r"about\.top is 1\.5 where"),
    ],
)
def test_a_file_that_is_no_evaluation_is_refused(tmp_path, damage, message):
    about = JudgedBy(options={"top": 1}, measure="error", description="D.", lower_is_better=True)
    whole = Evaluation(about=about, searches=[], summary=[], failures=[FailedTraining("a", 0, "no luck")])
    write_sealed(tmp_path / EVALUATION, whole.to_dict())
    assert load_evaluation(tmp_path / EVALUATION) == whole
    write_sealed(tmp_path / EVALUATION, damage(whole.to_dict()))
    with pytest.raises(InputError, match=message):
        load_evaluation(tmp_path / EVALUATION)


def test_what_diverged_is_null_in_the_file_and_nan_in_the_record():
    search = judged_search(found=[Valued("a", math.nan)], found_mean=math.nan)
    values = search.to_dict()
    assert (values["found"], values["found_mean"]) == ([["a", None]], None)
    read = JudgedSearch.from_dict(values, "a search", "a test")
    assert math.isnan(read.found[0].value)
    assert math.isnan(read.found_mean)
    assert read.regret is None


def test_the_summary_of_a_comparison_is_read_as_it_was_written():
    summary = made_up_comparison().summary()
    written = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert ComparisonSummary.from_dict(written, "a summary", "a test") == summary
    assert list(written) == ["about", "rows", "tests", "beats", "baselines", "undefined", "missing"]
    # The measures lie among the other keys.
    first = written["rows"][0]
    assert list(first)[:4] == ["rank", "strategy", "protection", "forgetting_epochs"]
    assert first["found_mean"].keys() == {"mean", "low", "high"}
    assert written["tests"][0]["row"] == list(summary.tests[0].row)
    assert type(summary.tests[0].measure) is Measure
