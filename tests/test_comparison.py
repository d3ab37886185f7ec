"""`forgetless compare` from searches to marks: the run itself, what interrupts it, and its numbers by hand."""

import itertools
import json
import math
import shutil
import statistics

import pytest
from scipy import stats

from configs import comparison_config, flag, search_config
from forgetless.cli import main
from forgetless.comparison import ComparisonConfig, Measure, Row, run_comparison, units
from forgetless.errors import InputError
from forgetless.evaluation.truth import read_truth
from forgetless.experiments import load_result
from forgetless.experiments.search import SearchRun
from forgetless.options import command_options
from forgetless.runs import CHECKPOINT, CHECKPOINT_BEFORE, EVALUATION, METRICS, RunFolder
from forgetless.search import SearchConfig, make_space, search_arms

TINY = {
    "space": "nas201",
    "operations": ("none", "skip_connect", "nor_conv_3x3"),
    "units": 2,
    "batch_size": 16,
    "epochs": 2,
    "models_per_epoch": 2,
    "batches_per_model": 2,
    "evaluation_batches": 1,
    "strategy_steps": 1,
    "samples_per_step": 2,
    "final_samples": 2,
    "protect_from": 1,
    "strategy": ("uniform", "enas"),
    "protection": ("none", "wpl"),
    "seeds": 2,
    "allow_few_seeds": True,
    "truth": "nas201-digits",
    "top": 2,
    "estimates": 5,
    "baselines": 4,
    "workers": 2,
}


def words(**changes):
    """The command's words for TINY with other options; a switch that is False is left out."""
    said, options = [], {**TINY, **changes}
    for name, value in options.items():
        if value is None or value is False:
            continue
        several = value if isinstance(value, tuple) else () if value is True else (value,)
        said += [flag(ComparisonConfig, name, options["space"]), *map(str, several)]
    return said


def without_time(result):
    """All that a comparison found but seconds."""
    summary = json.loads(json.dumps(result))
    for row in summary["rows"]:
        del row["seconds"], row["seeds"]["seconds"]
    return summary


def summary_of(path):
    return without_time(load_result(RunFolder(path)).summary().to_dict())


@pytest.fixture(scope="module")
def compared(tmp_path_factory, forked_workers, without_pictures):
    path = tmp_path_factory.mktemp("compared") / "run"
    assert main(["compare", *words(), "--output", str(path)]) == 0
    return path


@pytest.fixture
def copied(compared, tmp_path):
    """A copy that goes on in this process, and not in two others."""
    shutil.copytree(compared, tmp_path / "run")
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace("workers = 2", "workers = 1"))
    return tmp_path / "run"


# The run


def test_each_strategy_and_seed_is_an_ordinary_search(compared, tmp_path, capsys):
    assert sorted(str(path.parent.relative_to(compared)) for path in compared.glob("*/*/config.toml")) == [
        "enas/seed-0",
        "enas/seed-1",
        "uniform/seed-0",
        "uniform/seed-1",
    ]
    shutil.copytree(compared / "enas" / "seed-1", tmp_path / "one")
    assert main(["resume", str(tmp_path / "one"), "--json"]) == 0
    records = json.loads(capsys.readouterr().out)["records"]
    assert {(r["seed"], r["protection"]) for r in records} == {(1, "none"), (1, "wpl")}
    assert len(records) == 2 * (TINY["epochs"] + 1)


def test_a_seed_by_itself_is_that_of_a_search_over_all_seeds(compared, tmp_path):
    path = tmp_path / "together"
    searched = {option.flag for option in command_options(SearchConfig)}
    others = [name for name in TINY if flag(ComparisonConfig, name, TINY["space"]) not in searched]
    said = words(**dict.fromkeys(others), strategy="enas", protection=("wpl",), final_batches=1)
    assert main(["search", *said, "--output", str(path)]) == 0
    together = [r for r in RunFolder(path).records() if r["seed"] == 1]
    apart = [r for r in RunFolder(compared / "enas" / "seed-1").records() if r["protection"] == "wpl"]
    for record in (*together, *apart):
        del record["seconds"]
    assert together == apart


def test_killed_at_any_moment_it_goes_on_to_the_same_numbers_with_any_workers(compared, copied):
    """What a kill leaves: no configuration yet, a cut line, no evaluation."""
    for path in (copied / "enas" / "seed-0").iterdir():
        path.unlink()
    (copied / "enas" / "seed-0" / ".config.toml.1234.part").touch()
    cut = copied / "uniform" / "seed-0"
    lines = (cut / METRICS).read_text().splitlines(keepends=True)
    (cut / METRICS).write_text("".join(lines[:-1]) + lines[-1][:20])
    (cut / CHECKPOINT_BEFORE).replace(cut / CHECKPOINT)
    (copied / "uniform" / "seed-1" / EVALUATION).unlink()
    assert list(load_result(RunFolder(copied)).missing) == ["uniform/seed-0", "enas/seed-0", "uniform/seed-1"]
    assert main(["resume", str(copied)]) == 0
    assert summary_of(copied) == summary_of(compared)


def test_a_lost_state_is_told_and_its_rank_is_left_out(copied, compared, capsys):
    """Everything else is as it was."""
    (copied / "enas" / "seed-0" / "trained-seed0-wpl.pt").unlink()
    (copied / "enas" / "seed-0" / EVALUATION).unlink()
    assert main(["resume", str(copied)]) == 0
    told = capsys.readouterr()
    assert "enas/seed-0/trained-seed0-wpl.pt is missing; leaving it out" in told.err
    assert "τ of enas, wpl: 1 of 2 seeds" in told.out
    lost, whole = (load_result(RunFolder(path)) for path in (copied, compared))
    row = Row("enas", "wpl")
    assert lost.values(row, Measure.FOUND_MEAN) == whole.values(row, Measure.FOUND_MEAN)
    assert (len(lost.values(row, Measure.TAU)), len(whole.values(row, Measure.TAU))) == (1, 2)


def test_an_evaluation_of_another_kind_is_made_again(copied, compared):
    """Somebody evaluated one of the searches by hand, with other options."""
    path = copied / "enas" / "seed-0"
    assert (
        main(["evaluate", str(path), "--truth", "nas201-digits", "--top", "1", "--estimates", "0", "--baselines", "0"])
        == 0
    )
    with pytest.warns(UserWarning, match="Going on judges enas/seed-0 again"):
        assert list(load_result(RunFolder(copied)).missing) == ["enas/seed-0"]
    assert main(["resume", str(copied)]) == 0
    assert summary_of(copied) == summary_of(compared)


def test_one_that_fails_is_tried_again_reported_and_loses_no_other(copied, compared, monkeypatch, capsys):
    tries = []

    def fails(config, folder, **_):
        tries.append(folder.path)
        message = "no luck"
        raise ValueError(message)

    shutil.rmtree(copied / "enas" / "seed-1")
    (copied / "uniform" / "seed-0" / EVALUATION).unlink()
    real = SearchRun.make
    monkeypatch.setattr(SearchRun, "make", lambda c, f, **kw: (fails if "enas" in str(f.path) else real)(c, f, **kw))
    assert main(["resume", str(copied)]) == 1
    assert tries == [copied / "enas" / "seed-1"] * 2
    told = capsys.readouterr()
    assert "forgetless: enas/seed-1 failed: ValueError: no luck" in told.err
    assert "Missing: enas/seed-1 (of 4)" in told.out
    assert "ValueError: no luck" in (copied / "report.html").read_text()
    found = load_result(RunFolder(copied))
    assert found.missing == {"enas/seed-1": "ValueError: no luck"}
    assert sorted(found.values(Row("enas", "wpl"), Measure.FOUND_MEAN)) == [0]
    assert sorted(found.values(Row("uniform", "wpl"), Measure.FOUND_MEAN)) == [0, 1]
    monkeypatch.undo()
    assert main(["resume", str(copied)]) == 0
    assert summary_of(copied) == summary_of(compared)


def test_without_a_truth_what_is_found_is_trained_from_scratch(tmp_path, capsys):
    options = {"truth": None, "strategy": ("uniform",), "protection": ("none",), "top": 1, "training_seeds": 1}
    options |= {"final_batches": 1}
    options |= {"batches": 1, "trainings": str(tmp_path / "trainings"), "workers": 1}
    assert main(["compare", *words(**options), "--output", str(tmp_path / "run"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["summary"]["rows"]
    stored = [json.loads(path.read_text()) for path in (tmp_path / "trainings").iterdir()]
    errors = {each["training"]["architecture"]: each["result"]["test_error"] for each in stored}
    found = {}
    for seed in (0, 1):
        (derived,) = (
            r for r in RunFolder(tmp_path / "run" / "uniform" / f"seed-{seed}").records() if r["event"] == "derived"
        )
        found[str(seed)] = errors[derived["candidates"][0][0]]
    assert row["seeds"]["found_mean"] == found
    assert "regret" not in row


# Its numbers


def records_of(path, strategy, protection):
    """Seed → records, straight from the files."""
    found = {}
    for seed in (0, 1):
        lines = (path / strategy / f"seed-{seed}" / METRICS).read_text().splitlines()
        found[seed] = [r for r in map(json.loads, lines) if r["protection"] == protection]
    return found


def test_forgetting_is_that_of_the_files(compared):
    """Protection begins with the second and last epoch: it is the only one that may count."""
    rows = load_result(RunFolder(compared)).summary().to_dict()["rows"]
    assert {(row["strategy"], row["protection"]) for row in rows} == set(
        itertools.product(TINY["strategy"], TINY["protection"])
    )
    for row in rows:
        assert row["forgetting_epochs"] == [1, 2]
        records = records_of(compared, row["strategy"], row["protection"])
        for key in ("forgetting_mean", "forgetting_best", "forgetting_max"):
            values = {
                str(seed): next(r[key] for r in mine if r["event"] == "epoch" and r["epoch"] == 1)
                for seed, mine in records.items()
            }
            assert row["seeds"][key] == values
            mean, half = statistics.fmean(values.values()), half_interval(list(values.values()))
            assert row[key]["mean"] == pytest.approx(mean)
            assert row[key]["high"] - row[key]["mean"] == pytest.approx(half)


def test_quality_is_that_of_the_truth(compared):
    space = make_space(search_config(space="nas201", operations=TINY["operations"]))
    truth = read_truth("nas201-digits", space)
    table = dict(zip(map(str, truth.architectures), truth.values.tolist(), strict=True))
    rows = load_result(RunFolder(compared)).summary().to_dict()["rows"]
    for row in rows:
        for seed, mine in records_of(compared, row["strategy"], row["protection"]).items():
            (derived,) = (r for r in mine if r["event"] == "derived")
            errors = [table[text] for text, _ in derived["candidates"][: TINY["top"]]]
            assert row["seeds"]["found_mean"][str(seed)] == pytest.approx(statistics.fmean(errors))
            assert row["seeds"]["found_best"][str(seed)] == pytest.approx(min(errors))
            assert row["seeds"]["regret"][str(seed)] == pytest.approx(min(errors) - min(table.values()))
    means = [row["found_mean"]["mean"] for row in rows]
    assert means == sorted(means)
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]


def half_interval(values):
    return stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


# What is asked for


def test_configurations_of_units_make_every_arm_once(tmp_path):
    config = comparison_config(**{**TINY, "first_seed": 3, "protection": ("matched-lr", "none", "wpl")})
    made = units(RunFolder.create(tmp_path / "run", {"experiment": "compare"}), config)
    assert [unit.key for unit in made] == ["uniform/seed-3", "enas/seed-3", "uniform/seed-4", "enas/seed-4"]
    for unit in made:
        assert [(arm.seed, arm.protection) for arm in search_arms(unit.config)] == [
            (unit.config.run.first_seed, name) for name in ("none", "wpl", "matched-lr")
        ]
    again = ComparisonConfig.from_dict(config.to_dict())  # lists, as in a TOML file
    assert again == config


def config_of(**changes):
    return comparison_config(**{**TINY, "allow_few_seeds": False, **changes})


def test_rows_are_tested_against_their_own_strategy():
    pairs = config_of(protection=("l2", "none", "wpl")).pairs(Measure.TAU)
    assert [(str(row), str(reference)) for row, reference in pairs] == [
        ("uniform, l2", "uniform, none"),
        ("uniform, wpl", "uniform, none"),
        ("enas, l2", "enas, none"),
        ("enas, wpl", "enas, none"),
    ]
    pairs = config_of(reference="wpl").pairs(Measure.FORGETTING)
    assert [(row.protection, reference.protection) for row, reference in pairs] == [("none", "wpl")] * 2
    assert config_of().pairs(Measure.SECONDS) == []


def test_a_strategy_may_be_the_reference_of_all():
    pairs = config_of(reference="uniform").pairs(Measure.REGRET)
    assert {str(reference) for _, reference in pairs} == {"uniform, none"}
    assert [str(row) for row, _ in pairs] == ["uniform, wpl", "enas, none", "enas, wpl"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": ("enas", "gess")}, "Expected strategy to be one of"),
        ({"strategy": ("enas", "enas")}, "Expected one or more different strategies, but got enas, enas"),
        ({"protection": ("wpl", "wpl")}, "Expected one or more different protections, but got wpl, wpl"),
        ({"protection": ("wpl", "wool")}, "Expected protection to be one of"),
        ({"protection": ("none", "matched-lr")}, "Expected wpl among the protections"),
        ({"space": "recurrent", "operations": None, "units": None}, "is for another space"),
        ({"operations": None}, "It has 729 of the 15,625 of Nas201Space()"),
        ({"truth": "nowhere.csv"}, "nowhere.csv"),
        ({"truth": None, "column": "test_error"}, "Expected --truth FILE for a column of it"),
        ({"final_samples": 0}, "Expected final_samples above 0"),
        ({"top": 0}, "Expected top to be at least 1"),
        ({"workers": 0}, "Expected workers to be at least 1"),
        ({"reference": "l2"}, "Expected reference to be one of"),
        ({"allow_few_seeds": False}, "Expected at least 7 seeds for 2 comparisons at significance 0.05, but got 2"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, capsys, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *words(**changes), "--output", "run"]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_asked_of_a_search_is_not_done_with_a_comparison(compared, capsys):
    for command in ("evaluate", "interference"):
        assert main([command, str(compared)]) == 2
        error = capsys.readouterr().err
        assert f"but got the comparison {compared}. Name {compared / 'uniform' / 'seed-0'} or another." in error


def test_what_nothing_looks_at_is_not_trained_for_long():
    assert config_of().search_of("enas").selection.final_batches == 1
    assert config_of(truth=None).search_of("enas").selection.final_batches == 0
    assert config_of(final_batches=0).search_of("enas").selection.final_batches == 0


def test_enough_seeds_depend_on_the_comparisons():
    config_of(seeds=7).expect_seeds()
    with pytest.raises(InputError, match=r"Expected at least 8 seeds for 4 comparisons.*--allow-few-seeds"):
        config_of(seeds=7, protection=("none", "l2", "wpl")).expect_seeds()
    config_of(seeds=1, strategy=("enas",), protection=("wpl",)).expect_seeds()


def test_progress_is_read_from_the_files(compared):
    folder = RunFolder(compared)
    seen = []
    run_comparison(folder, load_result(folder).config, on_progress=seen.append)
    records = 2 * 2 * 2 * (TINY["epochs"] + 1)  # strategies, seeds, protections; the last of each is what is derived
    assert (seen[-1].done, seen[-1].total) == (records, records)
    assert seen[-1].label.startswith("judging")
