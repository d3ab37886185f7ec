"""Benchmarks: tables that are made from trainings, resumable, and readable as a truth."""

import csv
import functools
import json
import math
import statistics

import pytest

from configs import changed, search_config
from forgetless.cli import main
from forgetless.errors import InputError
from forgetless.evaluation import benchmark
from forgetless.evaluation.benchmark import BENCHMARKS, Benchmark, make_benchmark, task_difference
from forgetless.evaluation.trainings import TrainingStore, run_trainings
from forgetless.evaluation.truth import benchmark_names, read_truth
from forgetless.search import make_space
from forgetless.search.rates import RateConfig
from forgetless.search.scratch import TrainingResult

OPERATIONS = ("skip_connect", "nor_conv_1x1")
TINY = Benchmark(7, search_config(space="nas201", units=2, batch_size=16, operations=OPERATIONS), 2, num_seeds=2)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "tiny", TINY)
    return "tiny"


def rows_of(text):
    """By architecture, as dictionaries of text."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {row["architecture"]: row for row in csv.DictReader(lines)}


def about(text):
    return dict(line[2:].split(": ", 1) for line in text.splitlines() if line.startswith("# "))


def test_a_table_has_what_each_training_came_to_with_every_notation_of_a_function(tiny, tmp_path):
    text = make_benchmark(tiny, TrainingStore(tmp_path / "t"), workers=1, limit=5)
    stored = [json.loads(path.read_text()) for path in (tmp_path / "t").iterdir()]
    results = {(each["training"]["architecture"], each["training"]["seed"]): each["result"] for each in stored}
    space, rows = make_space(TINY.config), rows_of(text)
    assert list(rows) == [str(a) for a in list(space)[:5]]
    by_function = {}
    for architecture, row in rows.items():
        by_function.setdefault(space.canonical_form(space.parse(architecture)), []).append(row)
    # The third and the fifth are the same. The first of a function is trained, with both seeds.
    assert sorted(len(group) for group in by_function.values()) == [1, 1, 1, 2]
    assert results.keys() == {(group[0]["architecture"], seed) for group in by_function.values() for seed in (0, 1)}
    for number, group in enumerate(by_function.values()):
        for row in group:
            assert int(row["iso_group"]) == number
            for seed in (0, 1):
                result = results[group[0]["architecture"], seed]
                assert float(row[f"validation_error_seed{seed}"]) == pytest.approx(result["validation_error"], abs=1e-5)
                assert float(row[f"test_error_seed{seed}"]) == pytest.approx(result["test_error"], abs=1e-5)
            assert int(row["parameters"]) == results[group[0]["architecture"], 0]["parameters"]
    assert about(text)["version"] == "7"
    assert about(text)["command"] == "forgetless benchmark tiny"
    assert about(text)["training"] == "2 batches of 16, sgd 0.1, 2 seeds"
    assert about(text)["guessing"] == "0.90000"


def pretended(monkeypatch, error_of):
    """No trainings are made; what one comes to is told by a function of it."""
    asked = []

    def runner(training):
        asked.append((training.architecture, training.seed))
        error = error_of(training)
        return TrainingResult(validation_error=error, test_error=error, parameters=5, seconds=1.0)

    monkeypatch.setattr(benchmark, "run_trainings", functools.partial(run_trainings, runner=runner))
    return asked


def test_all_architectures_are_trained_with_one_seed_before_any_is_with_the_next(tiny, tmp_path, monkeypatch):
    asked, tables = pretended(monkeypatch, lambda training: (training.seed + 1) / 10), []
    how = {"workers": 1, "on_seed": tables.append}
    text = make_benchmark(tiny, TrainingStore(tmp_path), seeds=3, **how)
    assert [seed for _, seed in asked] == [seed for seed in range(3) for _ in range(len(asked) // 3)]
    assert tables[-1] == text
    assert [about(table)["command"] for table in tables] == [
        "forgetless benchmark tiny --seeds 1",
        "forgetless benchmark tiny",
        "forgetless benchmark tiny --seeds 3",
    ]
    assert tables[0] == make_benchmark(tiny, TrainingStore(tmp_path), seeds=1, workers=1)
    assert all(row["test_error_seed2"] == "0.30000" for row in rows_of(text).values())
    asked.clear()
    assert make_benchmark(tiny, TrainingStore(tmp_path), seeds=3, **how) == text
    assert not asked
    assert len(tables) == 3  # nothing is new


def test_a_killed_run_goes_on_to_the_same_bytes(tiny, tmp_path, monkeypatch):
    pretended(monkeypatch, lambda training: training.seed / 10)
    whole = make_benchmark(tiny, TrainingStore(tmp_path / "whole"), workers=1)
    killed = []

    def error_of(training):
        killed.append(training)
        if len(killed) == 70:
            raise KeyboardInterrupt
        return training.seed / 10

    pretended(monkeypatch, error_of)
    with pytest.raises(KeyboardInterrupt):
        make_benchmark(tiny, TrainingStore(tmp_path / "t"), workers=1)
    assert make_benchmark(tiny, TrainingStore(tmp_path / "t"), workers=1) == whole
    assert len(killed) == len(list((tmp_path / "whole").iterdir())) + 1


def test_how_far_it_is_and_how_long_it_takes_yet(tiny, tmp_path, monkeypatch):
    now, shown = [0.0], []

    def error_of(_):
        now[0] += 10.0
        return 0.5

    pretended(monkeypatch, error_of)
    monkeypatch.setattr(benchmark.time, "monotonic", lambda: now[0])
    make_benchmark(tiny, TrainingStore(tmp_path), seeds=1, workers=1, on_progress=shown.append)
    number = int(shown[0].total)
    assert (shown[0].done, shown[0].seconds_left) == (0, None)
    assert [each.seconds_left for each in shown[1:]] == [10.0 * left for left in range(number - 1, -1, -1)]
    shown.clear()
    make_benchmark(tiny, TrainingStore(tmp_path), seeds=2, workers=1, on_progress=shown.append)
    assert (shown[0].done, shown[0].total, shown[0].seconds_left) == (number, 2 * number, None)
    assert (shown[2].done, shown[2].seconds_left) == (number + 1, 10.0 * (number - 1))


def test_a_search_of_another_task_than_the_benchmark_says_so(tiny):
    assert task_difference(tiny, TINY.config) == ""
    other = changed(TINY.config, data="mnist", units=4, learning_rate=0.5)
    expected = "The search had data mnist, units 4; tiny has digits, 2: ranked on one task, judged by another."
    assert task_difference(tiny, other) == expected
    assert task_difference("a-file.csv", other) == ""
    # It ranks nothing, and is only looked up.
    assert task_difference(tiny, changed(other, strategy="random", protection=("none",))) == ""


def test_what_is_trained_is_not_trained_again(tiny, tmp_path, monkeypatch):
    store = TrainingStore(tmp_path)
    first = make_benchmark(tiny, store, workers=1, limit=2)
    files = set(tmp_path.iterdir())
    assert make_benchmark(tiny, store, workers=1, limit=2) == first
    assert make_benchmark(tiny, store, workers=1, limit=3).startswith(first)
    assert len(set(tmp_path.iterdir()) - files) == 2


def test_a_diverged_training_is_marked_in_its_column_and_mixed_into_nothing(tiny, tmp_path, monkeypatch):
    errors = {0: 0.5, 1: math.nan, 2: math.inf, 3: 1.0}
    pretended(monkeypatch, lambda training: errors[training.seed])
    text = make_benchmark(tiny, TrainingStore(tmp_path), seeds=4, workers=1, limit=1)
    (row,) = rows_of(text).values()
    assert [row[f"test_error_seed{seed}"] for seed in range(4)] == ["0.50000", "inf", "inf", "1.00000"]
    assert [row[f"validation_error_seed{seed}"] for seed in range(4)] == ["0.50000", "inf", "inf", "1.00000"]
    measured = [float(row[f"test_error_seed{seed}"]) for seed in (0, 2, 3)]
    assert statistics.median(measured) == 1.0  # as a reader takes it


def test_a_cross_entropy_above_that_of_guessing_has_diverged(monkeypatch, tmp_path):
    config = search_config(nodes=1, units=2, vocabulary=100, batch_size=4, num_steps=5)
    rates = RateConfig(schedule="linear")
    monkeypatch.setitem(BENCHMARKS, "text", Benchmark(1, config, 2, num_seeds=2, rates=rates))
    pretended(monkeypatch, lambda training: (3.0, 4.7)[training.seed])
    text = make_benchmark("text", TrainingStore(tmp_path), workers=1, limit=1)
    (row,) = rows_of(text).values()
    assert [row["test_error_seed0"], row["test_error_seed1"]] == ["3.00000", "inf"]
    assert float(about(text)["guessing"]) == pytest.approx(math.log(100), abs=1e-5)
    assert about(text)["training"] == "2 batches of 4, sgd 10 falling (linear), 2 seeds"
    stored = [json.loads(path.read_text())["training"] for path in tmp_path.iterdir()]
    assert all(each["rates"]["schedule"] == "linear" for each in stored)


def test_failures_are_told_and_what_is_done_is_kept(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("forgetless.evaluation.trainings.train_from_scratch", lambda *_, **__: 1 / 0)
    with pytest.raises(InputError, match=r"Expected every training to end, but 2 failed, first '\|skip"):
        make_benchmark(tiny, TrainingStore(tmp_path), workers=1, limit=2)


def test_the_command(tiny, tmp_path, capsys):
    out = tmp_path / "out.csv"
    options = ("--limit", "1", "--workers", "1", "--trainings", str(tmp_path / "t"), "--output", str(out))
    assert main(["benchmark", tiny, *options]) == 0
    assert len(out.read_text().splitlines()) == 10
    assert main(["benchmark", tiny, *options, "--seeds", "1"]) == 0
    assert about(out.read_text())["command"] == "forgetless benchmark tiny --seeds 1"
    assert main(["benchmark", "recurent-3"]) == 2
    assert "Did you mean 'recurrent-3'" in capsys.readouterr().err


@pytest.mark.parametrize("name", benchmark_names())
def test_benchmarks_that_are_shipped_are_whole_and_of_this_version_or_the_one_before(name):
    """A benchmark that is defined anew is shipped as it was until its trainings are made."""
    truth, version = read_truth(name, make_space(BENCHMARKS[name].config)), BENCHMARKS[name].version
    assert truth.is_complete
    assert int(truth.about["version"]) in {version, version - 1}
    assert truth.about["command"] == f"forgetless benchmark {name}"
