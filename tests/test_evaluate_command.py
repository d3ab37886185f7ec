"""`forgetless evaluate` from finished searches to tables, with a truth and with trainings."""

import json
import shutil

import pytest

from configs import judged_search, search_config
from forgetless.cli import main
from forgetless.evaluation.benchmark import BENCHMARKS, Benchmark
from forgetless.evaluation.records import Evaluation, JudgedBy, Valued, load_evaluation
from forgetless.report.evaluation import evaluation_notes
from forgetless.runs import read_sealed
from forgetless.spaces.nas201 import Nas201Space

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1")
SEARCH = (
    *(
        "search",
        "--space",
        "nas201",
        "--nas201.units",
        "2",
        "--batch-size",
        "16",
        "--epochs",
        "2",
        "--models-per-epoch",
        "2",
    ),
    *("--batches-per-model", "2", "--strategy-steps", "1", "--samples-per-step", "2", "--evaluation-batches", "1"),
    *(
        "--final-samples",
        "3",
        "--final-batches",
        "2",
        "--nas201.operations",
        *OPERATIONS,
        "--protection",
        "none",
        "wpl",
    ),
)


@pytest.fixture(scope="module")
def searched(tmp_path_factory, without_pictures):
    path = tmp_path_factory.mktemp("searched") / "one"
    assert main([*SEARCH, "--seeds", "2", "--output", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """Quality by the number of convolutions."""
    path = tmp_path_factory.mktemp("truth") / "made-up.csv"
    rows = [f"{cell},{sum('conv' in o for o in cell.operations) / 10}" for cell in Nas201Space(OPERATIONS)]
    path.write_text("\n".join(["arch,accuracy", *rows]))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The same with a column for each of three seeds, of which the second ranks otherwise."""
    path = tmp_path_factory.mktemp("truth") / "seeds.csv"
    counts = {cell: sum("conv" in o for o in cell.operations) / 10 for cell in Nas201Space(OPERATIONS)}
    rows = [f"{cell},{count},{-count},{count}" for cell, count in counts.items()]
    path.write_text("\n".join(["arch,accuracy_seed0,accuracy_seed1,accuracy_seed2", *rows]))
    return path


def evaluated(capsys, *arguments):
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_against_a_truth(searched, truth, tmp_path, capsys):
    options = ("--truth", truth, "--column", "accuracy", "--top", "2", "--estimates", "30", "--output", tmp_path)
    options = (*options, "--baselines", "6")
    found = evaluated(capsys, searched, *options)
    assert [(s["seed"], s["protection"]) for s in found["searches"]] == [
        (0, "none"),
        (0, "wpl"),
        (1, "none"),
        (1, "wpl"),
    ]
    for search in found["searches"]:
        assert len(search["found"]) == len(search["random"]) <= 2
        assert all(value == text.count("conv") / 10 for text, value in (*search["found"], *search["random"]))
        assert search["regret"] == pytest.approx(0.6 - search["found_best"])
        assert search["tau"]["num_architectures"] == 30
    assert [entry["num_seeds"] for entry in found["summary"]] == [2, 2]
    assert {(each["rule"], each["seed"]) for each in found["baselines"]} >= {("parameters", 0), ("synflow", 1)}
    selected = {architecture for each in found["baselines"] for architecture, _ in each["found"]}
    assert len(selected) > 6  # each seed draws its own six
    assert [each["rule"] for each in found["beats"]] == ["random", "parameters", "best proxy"] * 2
    assert {rule for rule, _ in found["undefined"]} == {"relu"}
    assert len(list((tmp_path / "baselines").glob("*.json"))) == 2  # one per seed, which all protections share
    assert read_sealed(tmp_path / "evaluation.json") == found
    assert load_evaluation(tmp_path / "evaluation.json").to_dict() == found


def test_a_search_of_another_task_than_the_benchmark_is_told(searched, truth, tmp_path, capsys, monkeypatch):
    options = ("--truth", truth, "--column", "accuracy", "--estimates", "0", "--baselines", "0", "--output", tmp_path)
    assert "judged by another" not in evaluated(capsys, searched, *options)["about"]["description"]
    monkeypatch.setitem(BENCHMARKS, str(truth), Benchmark(1, search_config(space="nas201", units=64), 2))
    assert "units 2;" in evaluated(capsys, searched, *options)["about"]["description"]


def test_runs_of_one_name_are_told_apart(searched, truth, tmp_path, capsys):
    again = tmp_path / searched.name
    shutil.copytree(searched, again)
    options = ("--truth", truth, "--column", "accuracy", "--estimates", "0", "--baselines", "0", "--output", tmp_path)
    found = evaluated(capsys, searched, again, *options)
    assert {search["run"] for search in found["searches"]} == {str(searched), str(again)}
    assert [entry["num_seeds"] for entry in found["summary"]] == [2] * 4
    assert main(["evaluate", str(again), str(again), "--truth", str(truth)]) == 2
    assert "Expected different run folders" in capsys.readouterr().err


def test_no_search_is_evaluated_and_shown_like_any_other(truth, tmp_path, capsys):
    path = tmp_path / "random"
    arms = [word for word in SEARCH if word not in {"--protection", "none", "wpl"}]
    arms = [*arms[: arms.index("--nas201.operations")], "--nas201.operations", *OPERATIONS]
    assert main([*arms, "--strategy", "random", "--seeds", "2", "--output", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "Strategy random: no shared weights, no rewards, no forgetting." in shown
    assert "Forgetting err" not in shown
    page = (path / "report.html").read_text()
    assert "No search: the architectures are drawn uniformly, and no weights are shared." in page
    assert "epoch 0" not in page
    assert not list(path.glob("trained-*"))
    found = evaluated(
        capsys, path, "--truth", truth, "--column", "accuracy", "--top", "2", "--estimates", "30", "--baselines", "5"
    )
    assert [search["strategy"] for search in found["searches"]] == ["random", "random"]
    assert [(search["tau"], search["seconds"]) for search in found["searches"]] == [(None, 0.0)] * 2
    assert all(len(search["found"]) == len(search["random"]) == 2 for search in found["searches"])
    assert main(["interference", str(path)]) == 2
    assert "strategy random, which trains none" in capsys.readouterr().err
    assert main([*arms, "--strategy", "random", "--controls"]) == 2
    assert "for --controls, but got none" in capsys.readouterr().err


def test_by_training_what_is_kept_is_not_trained_again(searched, tmp_path, capsys):
    options = (
        "--top",
        "1",
        "--training-seeds",
        "2",
        "--workers",
        "1",
        "--output",
        tmp_path,
        "--trainings",
        tmp_path / "t",
    )
    first = evaluated(capsys, searched, *options)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "t").iterdir()}
    assert evaluated(capsys, searched, *options) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "t").iterdir()} == files
    by_text = {}
    for path in files:
        stored = json.loads(path.read_text())
        by_text.setdefault(stored["training"]["architecture"], []).append(stored["result"]["test_error"])
    for search in first["searches"]:
        (text, value), *_ = search["found"]
        assert value == pytest.approx(sum(by_text[text]) / 2)
        assert search["tau"] is None


def test_the_table_is_whole_at_80_columns(searched, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    options = (
        "--truth",
        str(trained),
        "--estimates",
        "30",
        "--baselines",
        "5",
        "--output",
        str(tmp_path),
    )
    assert main(["evaluate", str(searched), *options]) == 0
    text = capsys.readouterr().out
    assert "What searches select: accuracy_median" in text
    # One split of three orders alike, two contrariwise.
    ceiling = load_evaluation(tmp_path / "evaluation.json").about.ceiling
    assert (ceiling.half, ceiling.num_splits, ceiling.tau) == (1, 3, pytest.approx(-1 / 3))
    (line,) = (line for line in text.splitlines() if line.startswith("ceiling"))
    assert "−0.33" in line
    assert "enas, wpl" in text
    assert "Gain of the mean over rules without a search (p)" in text
    assert "What rules without a search select" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80 or "evaluation.json" in max(text.splitlines(), key=len)


def test_the_notes_say_how_many_each_search_selected():
    def note(*sizes):
        about = JudgedBy(options={}, measure="error", description="D.", lower_is_better=True)
        searches = [judged_search(found=[Valued("a", 0.5)] * size) for size in sizes]
        return evaluation_notes(Evaluation(about=about, searches=searches, summary=[], failures=[]))[0]

    assert note(5, 5) == "D. Each search selects its 5 best; as many are drawn uniformly."
    assert "its 3 best" in note(3)
    assert "its 3 to 5 best" in note(5, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "requires an argument"),
        (("--truth", "nowhere.csv"), "nowhere.csv"),
        (("--top", "0"), "Expected top to be at least 1, but got 0"),
        (("--column", "accuracy"), "Expected --truth FILE for a column of it"),
        (("--workers", "0"), "Expected workers to be at least 1"),
    ],
)
def test_bad_input_is_one_sentence(searched, tmp_path, capsys, arguments, message):
    runs = [str(searched)] if arguments else []
    assert main(["evaluate", *runs, *arguments, "--trainings", str(tmp_path)]) == 2
    shown = capsys.readouterr().err.strip()
    assert message in shown
    assert len(shown.splitlines()) == 1


def test_a_truth_that_lacks_what_was_found_is_refused(searched, truth, tmp_path, capsys):
    path = tmp_path / "some.csv"
    path.write_text("\n".join(truth.read_text().splitlines()[:3]))
    assert main(["evaluate", str(searched), "--truth", str(path), "--column", "accuracy"]) == 2
    error = capsys.readouterr().err.strip()
    assert "Expected an architecture that some.csv has, but got" in error
    assert "It has 2 of the 729 of" in error
    assert len(error.splitlines()) == 1


def test_a_truth_of_another_space_is_refused_with_its_line(searched, tmp_path, capsys):
    path = tmp_path / "other.csv"
    path.write_text("arch,accuracy\n|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|,0.5\n")
    assert main(["evaluate", str(searched), "--truth", str(path), "--column", "accuracy"]) == 2
    assert "line 2" in capsys.readouterr().err
