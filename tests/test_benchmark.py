"""Benchmarks: tables that are made from trainings, resumable, and readable as a truth."""

import json
import math
import statistics

import pytest

from configs import changed, search_config
from forgetless.cli import main
from forgetless.errors import InputError
from forgetless.evaluation import benchmark
from forgetless.evaluation.benchmark import BENCHMARKS, Benchmark, make_benchmark, task_difference
from forgetless.evaluation.trainings import TrainingStore
from forgetless.evaluation.truth import benchmark_names, read_truth
from forgetless.search import make_space
from forgetless.search.scratch import TrainingResult

OPERATIONS = ("skip_connect", "nor_conv_1x1")
TINY = Benchmark(7, search_config(space="nas201", units=2, batch_size=16, operations=OPERATIONS), 2, num_seeds=2)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "tiny", TINY)
    return "tiny"


def test_a_table_is_the_means_of_its_trainings_and_a_truth(tiny, tmp_path):
    text = make_benchmark(tiny, TrainingStore(tmp_path / "t"), workers=1, limit=3)
    (tmp_path / "tiny.csv").write_text(text)
    by_text = {}
    for path in (tmp_path / "t").iterdir():
        stored = json.loads(path.read_text())
        by_text.setdefault(stored["training"]["architecture"], []).append(stored["result"])
    truth = read_truth(tmp_path / "tiny.csv", make_space(TINY.config))
    assert truth.column == "test_error"
    assert truth.lower_is_better
    assert truth.about["version"] == "7"
    assert truth.about["command"] == "forgetless benchmark tiny"
    assert [str(a) for a in truth.architectures] == [str(a) for a in list(make_space(TINY.config))[:3]]
    lines = [line.split(",") for line in text.splitlines() if not line.startswith("#")]
    for architecture, *cells in lines[1:]:
        results = by_text[architecture]
        assert len(results) == 2
        for place, key in ((0, "validation_error"), (2, "test_error")):
            errors = [result[key] for result in results]
            assert float(cells[place]) == pytest.approx(statistics.fmean(errors), abs=1e-5)
            assert float(cells[place + 1]) == pytest.approx(statistics.stdev(errors), abs=1e-5)
        assert int(cells[4]) == results[0]["parameters"]
        assert cells[6] == "0"


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


def test_a_diverged_training_counts_as_guessing(tiny, tmp_path, monkeypatch):
    results = [TrainingResult(validation_error=v, test_error=v, parameters=5, seconds=1.0) for v in (0.5, math.nan)]
    monkeypatch.setattr(benchmark, "run_trainings", lambda trainings, store, **_: (results, []))
    line = make_benchmark(tiny, TrainingStore(tmp_path), limit=1).splitlines()[-1]
    assert line.endswith(",0.70000,0.28284,0.70000,0.28284,5,1.00,1")


def test_a_cross_entropy_above_that_of_guessing_has_diverged(monkeypatch, tmp_path):
    config = search_config(nodes=1, units=2, vocabulary=100, batch_size=4, num_steps=5)
    monkeypatch.setitem(BENCHMARKS, "text", Benchmark(1, config, 2, num_seeds=2))
    results = [TrainingResult(validation_error=v, test_error=2.0, parameters=5, seconds=1.0) for v in (3.0, 1e9)]
    monkeypatch.setattr(benchmark, "run_trainings", lambda trainings, store, **_: (results, []))
    line = make_benchmark("text", TrainingStore(tmp_path), limit=1).splitlines()[-1]
    mean = (3.0 + math.log(100)) / 2
    assert line.split(",")[1] == f"{mean:.5f}"
    assert line.endswith(",2.00000,0.00000,5,1.00,1")


def test_failures_are_told_and_what_is_done_is_kept(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("forgetless.evaluation.trainings.train_from_scratch", lambda *_, **__: 1 / 0)
    with pytest.raises(InputError, match=r"Expected every training to end, but 2 failed, first '\|skip"):
        make_benchmark(tiny, TrainingStore(tmp_path), workers=1, limit=1)


def test_the_command(tiny, tmp_path, capsys):
    out = tmp_path / "out.csv"
    options = ("--limit", "1", "--workers", "1", "--trainings", str(tmp_path / "t"), "--output", str(out))
    assert main(["benchmark", tiny, *options]) == 0
    assert len(out.read_text().splitlines()) == 9
    assert main(["benchmark", "recurent-3"]) == 2
    assert "Did you mean 'recurrent-3'" in capsys.readouterr().err


@pytest.mark.parametrize("name", benchmark_names())
def test_benchmarks_that_are_shipped_are_whole_and_of_this_version(name):
    truth = read_truth(name, make_space(BENCHMARKS[name].config))
    assert truth.is_complete
    assert truth.about["version"] == str(BENCHMARKS[name].version)
    assert truth.about["command"] == f"forgetless benchmark {name}"
