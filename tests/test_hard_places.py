"""Names, numbers and trainings at the edge of what is possible: done right, or refused in one sentence."""

import dataclasses
import json
import math
import sys

import pytest
import torch

from configs import search_config, two_model_config
from forgetless.cli import main
from forgetless.configuration import MOST_SEEDS
from forgetless.errors import DivergedError, InputError, printable
from forgetless.experiments import load_result, two_model
from forgetless.experiments.two_model import TwoModelConfig, TwoModelResult, running
from forgetless.protection import Evidence, make_protection
from forgetless.records import plain
from forgetless.report import headline, summary_table
from forgetless.runs import CONFIG, RunFolder
from forgetless.schema import mismatch
from forgetless.search import SearchConfig, run
from forgetless.training import consolidate, expect_device
from shown import printed

TINY = ["--seeds", "1", "--iterations", "3", "--iterations-a", "3", "--evaluate-every", "3", "--width", "8"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORGETLESS_DATA", raising=False)
    return tmp_path


def refused(capfd, arguments, message):
    assert main(arguments) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("forgetless: Expected ") or "nvalid value" in captured.err
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


# ---- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run[wpl] a b", "ä→[/x][bold red]<b>&amp;", r"r$\frac{$^"])
def test_a_name_is_printed_as_it_is(here, capfd, name):
    assert main(["two-model", *TINY, "--protection", "none", "--output", name]) == 0
    captured = capfd.readouterr()
    assert f"Report: {name}/report.html" in captured.out
    assert captured.err == ""
    assert main(["report", name, "--output", f"{name}.html"]) == 0
    assert f"Report: {name}.html" in capfd.readouterr().out


def test_control_characters_and_bytes_that_are_no_text_never_reach_the_terminal(here, capfd):
    name = "a\x1b[31m\udcff\n"
    assert main(["two-model", *TINY, "--protection", "none", "--output", name]) == 0
    assert r"Report: a\x1b[31m\xff\n/report.html" in capfd.readouterr().out
    refused(capfd, ["resume", "no\x1b]0;\udcff"], r"but got no\x1b]0;\xff.")
    assert str(InputError("a\nb\x07")) == r"a\nb\x07"
    assert printable("plain äöü 100 % →") == "plain äöü 100 % →"


LONG = "a" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["two-model", *TINY, "--output", LONG],
        ["search", "--space", "nas201", "--output", LONG],
        ["resume", LONG],
        ["report", LONG],
        ["evaluate", LONG],
        ["interference", LONG],
        ["two-model", *TINY, "--data", LONG * 20],
        ["two-model", *TINY, "--data", "digits", "--data-dir", "\udcff"],
        ["benchmark", "recurrent-3", "--limit", "1", "--trainings", LONG],
    ],
    ids=lambda arguments: " ".join(arguments)[:30],
)
def test_names_that_no_file_system_takes(here, capfd, arguments):
    refused(capfd, arguments, "but got")


def test_names_with_nul():
    for make in (RunFolder, RunFolder.open_to_go_on, lambda path: RunFolder.create(path, {})):
        with pytest.raises(InputError, match=r"Expected the path of a folder, but got a\\x00b: "):
            make("a\0b")
    with pytest.raises(InputError, match="Expected data to be text in UTF-8, but got 'a"):
        two_model_config(data="a\0b")


# ---- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--threads 1000000", "Expected threads to be at most 1024, but got 1000000"),
        ("--device meta", "Expected a device that this machine has, but got 'meta'"),
        ("--width 99999999999999999999999", "Expected width to fit into 64 bits, but got 1e+23"),
        (f"--width {10**400}", "--width"),
        ("--width 1000000", "Expected models that fit "),
        ("--models 100000000", "models=100000000 need about "),
        (f"--seeds {MOST_SEEDS + 1}", f"Expected seeds to be at most {MOST_SEEDS}"),
        ("--iterations 1.5", "Expected --iterations to be a whole number, but got 1.5"),
        ("--shared 2.5", "Expected --shared to be a whole number, but got 2.5"),
        ("--wpl.strength 1e400", "Expected the strength of wpl to be finite and at least 0, but got inf"),
        ("--protection wpl-tolerance --wpl-tolerance.strength 1e-320", "Expected a tolerance of at least 1e-30"),
        ("--checkpoint-every 9e999s", "Expected a duration such as 10min"),
    ],
)
def test_numbers_beyond_a_machine(here, capfd, arguments, message):
    options = [word for pair in zip(TINY[::2], TINY[1::2], strict=True) if pair[0] not in arguments for word in pair]
    refused(capfd, ["two-model", *options, *arguments.split(), "--output", "run"], message)
    assert list(here.iterdir()) == []


def test_whole_numbers_may_be_written_with_a_point(here, capfd):
    assert main(["two-model", *TINY, "--protection", "none", "--models", "2.0", "--output", "run"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run": {"seeds": 1.5}}, "seeds is 1.5 where int is expected"),
        ({"run": {"seeds": True}}, "seeds is True where int is expected"),
        ({"protections": [{"name": "wpl", "strength": "x"}]}, "strength is 'x' where"),
        ({"chain": {"convergence": [1.0, "x"]}}, "convergence[1] is 'x' where float is expected"),
        ({"protections": [{"name": "wpl", "strength": float("inf")}]}, "to be finite and at least 0, but got inf"),
        ({"chain": {"wiring": "cross"}}, "Expected wiring to be one of prefix, crossed, but got 'cross'"),
        ({"data": {"name": ["mnist"]}}, "name is ['mnist'] where str is expected"),
        ({"optimizer": {"learning_rate": "fast"}}, "learning_rate is 'fast' where"),
        ({"optimizer": {"name": "sdg"}}, "Did you mean 'sgd'"),
        ({"run": {"seeds": 2**70}}, "Expected seeds to fit into 64 bits, but got 1.18e+21"),
        ({"run": {"seeds": 10**400}}, "Expected seeds to fit into 64 bits, but got a larger number"),
        ({"run": 3}, "Expected a table for run, but got 3"),
        ({"protections": {"name": "wpl"}}, "Expected tables for protections, but got {'name': 'wpl'}"),
        ({"protections": [{"strength": 1.0}]}, "a table with the name of a protection, but got {'strength': 1.0}"),
        ({"protections": [{"name": "none", "strength": 1.0}]}, "no options of none, which has none, but got"),
        ({"resources": {"plugin": True}}, "plugin is True where"),
    ],
)
def test_options_of_wrong_types_in_a_file(options, message):
    with pytest.raises(InputError) as told:
        TwoModelConfig.from_dict(options)
    assert message in str(told.value)


def test_a_configuration_is_read_back_whatever_its_kind():
    config = two_model_config(shared=(1, 2), wiring="prefix")
    assert TwoModelConfig.from_dict(config.to_dict()) == config
    search = search_config(space="nas201", protect_from="forgetting")
    assert SearchConfig.from_dict(search.to_dict()) == search
    assert mismatch([1, 2], tuple[int, ...]) is None
    assert mismatch([1, "2"], tuple[int, ...], "x") == "x[1] is '2' where int is expected"


def test_a_device_that_keeps_no_numbers():
    with pytest.raises(InputError, match="Expected a device that this machine has, but got 'meta'"):
        expect_device("meta")
    expect_device("cpu")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "Expected sizes that fit the memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "Expected sizes that fit the memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), "Expected sizes that fit the memory"),
        (OSError(28, "No space left on device", "x"), "to read and write x, but got: No space left on device."),
        (OSError(28, "No space left on device"), "to read and write files, but got: No space left on device."),
    ],
)
def test_a_machine_at_its_limits_is_one_sentence(here, capfd, monkeypatch, error, message):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(running, "load_task", fail)
    refused(capfd, ["two-model", *TINY], message)


def test_an_error_of_our_own_is_no_lack_of_memory(here, monkeypatch):
    monkeypatch.setattr(running, "load_task", lambda _: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["two-model", *TINY])


# ---- trainings that diverge --------------------------------------------------------------------------------------

DIVERGING = two_model_config(
    seeds=2,
    iterations=8,
    iterations_a=8,
    evaluate_every=4,
    width=8,
    optimizer="sgd",
    learning_rate=1e30,
    models=3,
    protection=(
        *("none", "freeze", "l2", "wpl", "matched-lr", "mas", "si", "nsas", "ogl", "coupling", "wpl-tolerance"),
        *("replay", "lwf", "wise-ft", "slower", "wpl-replay", "wpl-lwf"),
    ),
)


def test_two_models_that_diverge_are_results(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {"experiment": "two-model", **DIVERGING.to_dict()})
    with pytest.warns(UserWarning, match="A model that diverged is not protected from later ones"):
        two_model.TwoModelRun.make(DIVERGING, folder)
    result = two_model.TwoModelRun.load(DIVERGING, folder)
    assert result.runs == []
    assert len(result.diverged) == len(two_model.arms(DIVERGING))
    assert result.summary() == []
    assert math.isnan(result.diverged[0].accuracy_a_after)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert "NaN" not in "".join(lines)
    assert [json.loads(line)["protection"] for line in lines[:2]] == ["none", "freeze"]
    read = load_result(folder)
    assert plain(read.diverged) == folder.records() == plain(result.diverged)
    assert "Diverged, and in no mean: none with seeds 0 and 1; freeze" in " ".join(
        " ".join(printed(summary_table(read))).split()
    )
    assert main(["report", str(folder.path)]) == 0
    assert "Diverged, and in no mean" in (folder.path / "report.html").read_text()


def test_a_seed_that_diverged_is_in_no_mean_and_in_no_pair():
    config = two_model_config(
        seeds=3,
        iterations=6,
        iterations_a=20,
        evaluate_every=6,
        width=8,
        protection=("none", "wpl"),
        wpl_strength=(1.0,),
    )
    runs = two_model.run(config).runs

    def lost(record, seed, protection):
        gone = (record.seed, record.protection) == (seed, protection)
        return dataclasses.replace(record, accuracy_b=math.nan, forgetting=math.nan) if gone else record

    whole = TwoModelResult.of(config, runs).summary()
    assert [entry.num_diverged for entry in whole] == [0, 0]
    for protection in ("none", "wpl"):
        found = TwoModelResult.of(config, [lost(record, 1, protection) for record in runs])
        assert len(found.diverged) == 1
        by = {entry.protection: entry for entry in found.summary()}
        assert by[protection].num_diverged == 1
        assert by[protection].num_seeds == 2
        kept = TwoModelResult(config, [record for record in runs if record.seed != 1])
        assert by["wpl"].reduction == kept.summary()[1].reduction
        assert by["wpl"].cost_b == kept.summary()[1].cost_b
    alone = [lost(record, record.seed, "none") for record in runs]
    assert headline(TwoModelResult.of(config, alone)).startswith("Without protection every run diverged, so there is")
    unfinished = TwoModelResult.of(config, [r for r in runs if (r.seed, r.protection) != (1, "none")])
    assert unfinished.summary()[-1].cost_b is None  # that arm is still to come


def test_a_search_whose_batches_are_all_skipped_is_a_result():
    """Gradients that overflow leave the weights, and the errors, finite."""
    options = {"units": 4, "epochs": 3, "models_per_epoch": 2, "batches_per_model": 3, "final_samples": 2}
    options |= {"final_batches": 2, "evaluation_batches": 1, "strategy_steps": 1, "samples_per_step": 2}
    config = search_config(space="nas201", learning_rate=1e10, protect_from=0, protection=("wpl",), **options)
    records = run(config)
    skipped = [record.num_passed_over for record in records if record.event == "epoch"]
    assert len(skipped) == 3
    assert max(skipped) >= config.schedule.batches_per_model
    assert len(records) == 4


def test_a_model_that_diverged_is_told_of_and_not_held():
    model = torch.nn.Linear(2, 2)
    wpl = make_protection("wpl", model.parameters())

    def diverged():
        raise DivergedError("Expected finite gradients.")

    evidence = Evidence(fisher=diverged, batches=list, loss=lambda o, t: o.sum(), loss_of=lambda: None)
    with pytest.warns(UserWarning, match="A model that diverged is not protected from later ones. Expected finite"):
        assert not consolidate(wpl, model, evidence)
    assert wpl.plasticity.anchor(model.weight) is None


# ---- files -------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_removed_during_its_run(here, capfd, monkeypatch):
    appended = RunFolder.append

    def remove(folder, record):
        for path in sorted(folder.path.rglob("*"), reverse=True):
            path.unlink()
        folder.path.rmdir()
        appended(folder, record)

    monkeypatch.setattr(RunFolder, "append", remove)
    refused(capfd, ["two-model", *TINY, "--output", "run"], "in run, but got: it does not exist any more")
    assert not (here / "run").exists()


def test_arguments_that_are_no_text_are_an_option_like_any_other(here, capfd):
    refused(capfd, ["two-model", "--data", "\udcff\ud800"], "Expected data to be text in UTF-8")
    assert not (here / CONFIG).exists()
    assert sys.getfilesystemencoding() == "utf-8"
