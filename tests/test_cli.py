import importlib
import inspect
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from cyclopts import App
from rich.cells import cell_len

from forgetless.checkpoints import Checkpoints
from forgetless.cli import _COMMANDS, main, terminal
from forgetless.comparison import ComparisonConfig
from forgetless.evaluation.config import EvaluateConfig
from forgetless.experiments.fine_tune import FineTuneConfig
from forgetless.experiments.landscape import LandscapeConfig
from forgetless.experiments.two_model import TwoModelConfig
from forgetless.options import command_options
from forgetless.runs import CHECKPOINT, METRICS, REPORT, RunFolder
from forgetless.search import SearchConfig

pytestmark = pytest.mark.usefixtures("without_pictures")
TINY = (
    "--space nas201 --nas201.units 2 --epochs 2 --models-per-epoch 2 --batches-per-model 2 --strategy-steps 1 "
    "--samples-per-step 2 --final-samples 2 --final-batches 2 --batch-size 16"
)
SMALL = ["--seeds", "1", "--iterations", "20", "--iterations-a", "30", "--width", "16", "--evaluate-every", "10"]
RUN_KEYS = {
    "seed",
    "protection",
    "wiring",
    "shared",
    "convergence",
    "strength",
    "accuracy_a_before",
    "accuracy_a_after",
    "accuracy_a_min",
    "accuracy_b",
    "forgetting",
    "seconds",
}


def tiny_search(*changes):
    """The words of a small search, with some options beside its own or in their place."""
    words = TINY.split()
    pairs = [pair for pair in zip(words[::2], words[1::2], strict=True) if pair[0] not in changes]
    if "--space" in changes and "nas201" not in changes:
        pairs = [pair for pair in pairs if not pair[0].startswith("--nas201.")]
    kept = [word for pair in pairs for word in pair]
    return ["search", *kept, *changes]


def without_time(runs):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in runs]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORGETLESS_DATA", raising=False)
    return tmp_path


def test_json_is_all_of_standard_output(here, capfd):
    assert main(["two-model", *SMALL, "--wpl.strength", "1e3", "1e5", "--json", "--output", "run"]) == 0
    out = capfd.readouterr().out
    result = json.loads(out)
    assert set(result) == {"config", "environment", "runs", "summary"}
    assert len(result["runs"]) == len(result["summary"]) == 3 + 2 * 2
    assert all(set(run) >= RUN_KEYS for run in result["runs"])
    assert [each.get("strength") for each in result["config"]["protections"] if each["name"] == "wpl"] == [1e3, 1e5]
    plain, held = (next(s for s in result["summary"] if s["protection"] == name) for name in ("none", "freeze"))
    assert plain["reduction"] is None
    assert set(held["forgetting"]) == {"mean", "low", "high"}
    assert all(0 <= run["accuracy_b"] <= 1 for run in result["runs"])


def test_table_report_and_default_folder(here, capfd):
    assert main(["two-model", *SMALL, "--protection", "none", "wpl"]) == 0
    output = capfd.readouterr().out
    assert "wpl" in output
    (folder,) = (here / "runs").iterdir()
    assert (folder / REPORT).read_text().lstrip().lower().startswith("<!doctype html>")
    assert len(RunFolder(folder).records()) == 2
    assert max(len(line) for line in output.splitlines() if "│" in line or "─" in line or "wpl" in line) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "mnits"], "Did you mean 'mnist'"),
        (["--protection", "none", "wlp"], "Did you mean 'wpl'"),
        (["--protection", "ewc?"], "Expected protection to be one of"),
        (["--shared", "4"], "Expected shared between 1 and 3 for crossed wiring, but got 4"),
        (["--convergence", "1.2"], "Expected convergence in (0, 1], but got 1.2"),
        (["--convergence", "0"], "Expected convergence in (0, 1], but got 0.0"),
        (["--wpl.strength", "-1"], "Expected the strength of wpl to be finite and at least 0, but got -1.0"),
        (["--wpl.strength", "nan"], "Expected the strength of wpl to be finite and at least 0, but got nan"),
        (["--wpl.strength", "much"], "--wpl.strength"),
        (["--sheared", "2"], "--shared"),
        (["--data", "mnist", "--data-dir", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(here, capfd, arguments, message):
    assert main(["two-model", *SMALL, "--output", "run", *arguments]) == 2
    captured = capfd.readouterr()
    assert message in captured.err
    assert captured.err.startswith("forgetless: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(here.iterdir()) == []


def test_corrupted_data_writes_nothing(here, capfd):
    raw = here / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"):
        (raw / name).write_bytes(b"\0\0\x08\x03" + b"\0" * 20)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"")
    assert main(["two-model", *SMALL, "--data", "mnist", "--data-dir", "data", "--output", "run"]) == 2
    assert "ubyte" in capfd.readouterr().err
    assert not (here / "run").exists()


def test_an_existing_run_is_refused_then_overwritten(here, capfd):
    arguments = ["two-model", *SMALL, "--protection", "none", "--output", "run"]
    assert main(arguments) == 0
    before = (here / "run" / METRICS).read_bytes()
    assert main(arguments) == 2
    assert "does not exist yet" in capfd.readouterr().err
    # Bad input loses nothing, even with --overwrite.
    assert main([*arguments, "--overwrite", "--data", "mnits"]) == 2
    assert (here / "run" / METRICS).read_bytes() == before
    assert main([*arguments, "--overwrite"]) == 0


def test_unwritable_folder(here, capfd):
    (here / "file").touch()
    assert main(["two-model", *SMALL, "--output", "file/run"]) == 2
    assert "Expected to be able to write in file/run, but got: Not a directory." in capfd.readouterr().err


def test_resume_of_what_is_no_run(here, capfd):
    assert main(["resume", "nothing"]) == 2
    assert "Expected a run folder" in capfd.readouterr().err


def test_resume_refuses_an_edited_configuration(here, capfd):
    assert main(["two-model", *SMALL, "--protection", "none", "--output", "run"]) == 0
    config = here / "run" / "config.toml"
    config.write_text(config.read_text().replace("width = 16", "widht = 16"))
    assert main(["resume", "run"]) == 2
    assert "Did you mean 'width'" in capfd.readouterr().err


def test_report_of_several_runs(here, capfd):
    for output, wiring in (("one", "prefix"), ("two", "crossed")):
        assert main(["two-model", *SMALL, "--protection", "none", "wpl", "--wiring", wiring, "--output", output]) == 0
    assert main(["report", "one", "two", "--output", "both.html"]) == 0
    page = (here / "both.html").read_text()
    assert "prefix" in page
    assert "crossed" in page
    assert main(["report", "one", "three"]) == 2


def test_images_by_class_from_a_folder(here, capfd):
    from PIL import Image

    for label in ("left", "right"):
        (here / "arrows" / label).mkdir(parents=True)
        for n in range(40):
            pixels = torch.zeros(8, 8, dtype=torch.uint8)
            pixels[:, : 4 if label == "left" else 8] = 100 + n
            Image.fromarray(pixels.numpy()).save(here / "arrows" / label / f"{n}.png")
    assert main(["two-model", *SMALL, "--data", "arrows", "--protection", "none", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["runs"][0]["accuracy_b"] >= 0.5


def test_interrupted_at_any_point_and_resumed(here, capfd, monkeypatch):
    """By a signal; test_faults.py kills two models, and `make test-slow` sends every signal to every command."""
    arguments = tiny_search("--epochs", "3", "--protection", "none", "wpl")
    reached, at = [], [0]
    point = Checkpoints.point

    def counted(self, *given, **options):
        reached.append(1)
        if len(reached) == at[0]:
            os.kill(os.getpid(), signal.SIGTERM)
        return point(self, *given, **options)

    monkeypatch.setattr(Checkpoints, "point", counted)
    assert main([*arguments, "--output", "whole"]) == 0
    whole = RunFolder(here / "whole").records()
    at[0] = random.randrange(len(reached) // 2, len(reached))
    reached.clear()
    capfd.readouterr()
    assert main([*arguments, "--output", "run"]) == 143
    error = capfd.readouterr().err
    assert "go on with: forgetless resume run" in error
    assert "Traceback" not in error
    assert 3 <= len(RunFolder(here / "run").records()) < len(whole)
    assert main(["resume", "run", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert without_time(result["records"]) == without_time(whole)
    assert without_time(RunFolder(here / "run").records()) == without_time(whole)


CONFIGS = {
    "two-model": TwoModelConfig,
    "landscape": LandscapeConfig,
    "fine-tune": FineTuneConfig,
    "search": SearchConfig,
    "compare": ComparisonConfig,
    "evaluate": EvaluateConfig,
}


@pytest.mark.parametrize(("command", "config"), CONFIGS.items())
def test_help_names_every_option(here, capfd, monkeypatch, command, config):
    options = command_options(config)
    told = {}
    for columns in ("80", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main([command, "--help-all"]) == 0
        told[columns] = capfd.readouterr().out
    for option in options:
        (line,) = (line for line in told["200"].splitlines() if re.search(rf" {re.escape(option.flag)} ", line))
        assert option.help, option.flag
        assert option.help.split()[0].strip("`;") in line
        assert option.flag in told["80"]
    for title in {option.group for option in options}:
        assert f" {title} ─" in told["200"]
    assert max(map(cell_len, told["80"].splitlines())) <= 80
    assert main([command, "--help"]) == 0
    shown = set(re.findall(r"--[\w.-]+", capfd.readouterr().out))
    assert {option.flag for option in options} & shown == {option.flag for option in options if option.is_basic}


SLOW = {"torch", "numpy", "scipy", "matplotlib", "sklearn", "networkx", "jinja2", "pooch", "PIL", "ray"}


def test_the_list_of_commands_imports_nothing_that_is_slow():
    """Of each command it says what the command's own help says first."""
    program = f"""
import contextlib, io, sys
from forgetless.__main__ import main
sys.argv = ["forgetless", "--help"]
with contextlib.redirect_stdout(io.StringIO()) as shown:
    assert main() == 0
assert "two-model" in shown.getvalue()
print(*{SLOW} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize("command", ["", *CONFIGS])
def test_a_help_fits_a_screen_and_goes_without_what_is_slow(here, command):
    program = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {SLOW}:
            raise AssertionError(name)

sys.meta_path.insert(0, Refuse())
from forgetless.__main__ import main
sys.argv = ["forgetless", *{command.split()}, "--help"]
sys.exit(main())
"""
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"Usage: forgetless {command}")
    assert len(lines) <= 44
    assert max(map(cell_len, lines)) <= 80


def test_a_signal_while_a_command_is_loaded_stops_before_anything_is_written(here, monkeypatch):
    monkeypatch.setattr(App, "parse_commands", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["two-model", *SMALL, "--output", "run"]) == 143
    assert not (here / "run").exists()


def test_an_installation_that_is_broken_is_no_bad_input(here, monkeypatch):
    def broken(*_):
        raise OSError("libtorch.so: cannot open shared object file")

    monkeypatch.setattr(App, "parse_commands", broken)
    with pytest.raises(OSError, match="libtorch"):
        main(["two-model", *SMALL, "--output", "run"])


@pytest.mark.parametrize("name", _COMMANDS)
def test_a_command_is_told_in_the_list_as_by_itself(name):
    module = name.replace("-", "_")
    command = getattr(importlib.import_module(f"forgetless.cli.{module}"), f"{module}_command")
    assert inspect.getdoc(command).partition("\n")[0] == _COMMANDS[name]


# Searches


def test_json_of_a_compared_search_is_all_of_standard_output(here, capfd):
    assert main(tiny_search("--controls", "--json", "--output", "run")) == 0
    result = json.loads(capfd.readouterr().out)
    assert set(result) == {"config", "environment", "records", "summary"}
    assert result["records"] == RunFolder(here / "run").records()
    arms = [(record["protection"], record["event"]) for record in result["records"]]
    assert arms == [(arm, event) for arm in ("none", "wpl", "matched-lr") for event in ("epoch", "epoch", "derived")]
    assert [entry["protection"] for entry in result["summary"]] == ["none", "matched-lr", "wpl"]
    assert all(record["seconds"] for record in result["records"])
    assert (here / "run" / REPORT).exists()


def test_a_search_of_text_prints_a_table_and_makes_its_own_folder(here, capfd):
    sizes = "--recurrent.nodes 2 --text.num-steps 5 --evaluation-batches 1 --final-samples 0"
    assert main(tiny_search("--space", "recurrent", *sizes.split())) == 0
    captured = capfd.readouterr()
    assert "Forgetting err₂ − err₁, nats per token" in captured.out
    assert max(map(len, captured.out.split("Report:")[0].splitlines())) <= 80
    (folder,) = (here / "runs").iterdir()
    assert folder.name.startswith("search-kjv-")
    assert len(RunFolder(folder).records()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--space nas2001", "Did you mean 'nas201'?"),
        ("--strategy enaz", "Did you mean 'enas'"),
        ("--protection none wlp", "Did you mean 'wpl'"),
        ("--protection none matched-lr", "Add wpl."),
        ("--text.vocabulary 100", "Expected --text.vocabulary together with text, but the task is images."),
        ("--data ptb", "Expected data that fits the space nas201, but got 'ptb'"),
        ("--data cifar", "Did you mean 'cifar10'"),
        ("--data cifar10 --data-dir nowhere", "nowhere"),
        ("--space cell --cell.nodes 0", "Expected nodes to be at least 1, but got 0"),
        ("--nas201.units 1000000", "units=1000000, cells_per_stage=1, batch_size=16 need about "),
        ("--nas201.unitz 3", "--nas201.units"),
        ("--epochs many", "epochs"),
        ("--wpl.strength nan", "Expected the strength of wpl to be finite and at least 0, but got nan"),
        ("--learning-rate 0", "Expected learning_rate to be finite and above 0, but got 0.0"),
        ("--max-gradient-norm -1", "Expected max_gradient_norm to be finite and above 0, but got -1.0"),
        ("--momentum 1", "Expected momentum in [0, 1), but got 1.0"),
        ("--wpl.decay nan", "Expected decay in [0, 1], but got nan"),
        ("--device cuda:99", "Expected a device that this machine has, but got 'cuda:99'"),
    ],
)
def test_bad_input_of_a_search_is_one_sentence_and_exit_code_2(here, capfd, arguments, message):
    assert main(tiny_search("--output", "run", *arguments.split())) == 2
    captured = capfd.readouterr()
    assert message in captured.err
    assert captured.err.startswith("forgetless: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("two-model --nsas.archive-size 3", "--nsas.archive-size together with nsas, but the protection is none, mat"),
        ("two-model --protection none l2 --wpl.strength 1 2", "the protection is none, l2. Choose wpl, or leave the"),
        ("search --protection none --wpl.decay 0.5", "--wpl.decay together with wpl, but the protection is none."),
        ("search --ewc.strength 1", "--ewc.strength together with ewc, but the protection is wpl."),
        ("search --nas201.units 2", "--nas201.units together with nas201, but the space is recurrent."),
        ("search --images.augment", "--images.augment together with images, but the task is text."),
        ("search --strategy uniform --enas.temperature 2", "together with enas, but the strategy is uniform."),
        ("search --strategy random --wpl.strength 2", "together with wpl, but the protection is none."),
        ("compare --mas.strength 1", "--mas.strength together with mas, but the protection is none, l2, wpl."),
        ("compare --gdas.learning-rate 1", "together with gdas, but the strategy is uniform, enas."),
    ],
)
def test_an_option_of_a_method_that_was_not_chosen_is_refused(here, capfd, arguments, message):
    assert main([*arguments.split(), "--output", "run"]) == 2
    captured = capfd.readouterr()
    assert message in captured.err
    assert captured.err.startswith("forgetless: Expected --")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(here.iterdir()) == []


@pytest.fixture(scope="module")
def finished_search(tmp_path_factory, without_pictures):
    path = tmp_path_factory.mktemp("finished") / "run"
    assert main(tiny_search("--output", str(path))) == 0
    return path


@pytest.fixture
def finished(here, finished_search, capfd):
    """A copy of a finished search, and its records."""
    shutil.copytree(finished_search, here / "run")
    capfd.readouterr()
    return here / "run", RunFolder(here / "run").records()


@pytest.mark.parametrize("size", [0, 1000])
def test_a_damaged_checkpoint_is_passed_over_with_a_word(finished, capfd, size):
    path, records = finished
    os.truncate(path / CHECKPOINT, size)
    assert main(["resume", "run"]) == 0
    error = capfd.readouterr().err
    assert "forgetless: run/checkpoint.pt is damaged" in error
    assert "going on from the one before." in error
    again = RunFolder(path).records()
    assert without_time(again) == without_time(records)
    assert again[:-1] == records[:-1]
    assert again[-1] != records[-1]  # it took other seconds: it was made again


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("units = 2", "units = 3", "units 3 (there 2)"),
        ("epochs = 2", "epochs = 1", "epochs 1 (there 2)"),
        (r'name = "wpl".*\}', 'name = "none" }', "protections none (there wpl)"),
        ("epochs = 2", "epoch = 2", "Did you mean 'epochs'"),
    ],
)
def test_resume_with_another_configuration_names_the_options_and_loses_nothing(finished, capfd, old, new, message):
    path, _ = finished
    config, before = path / "config.toml", (path / METRICS).read_bytes()
    config.write_text(re.sub(old, new, config.read_text()))
    assert main(["resume", "run"]) == 2
    assert message in capfd.readouterr().err
    assert (path / METRICS).read_bytes() == before


# TensorBoard


def shown_by_tensorboard(folder):
    """Tag → [(step, value), …]."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra tensorboard"
    )
    events = accumulator.EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_every_number_of_every_epoch_once(here, capfd):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    arguments = tiny_search("--protection", "none", "wpl", "--tensorboard", "--output", "run")
    assert main(arguments) == 0
    records = RunFolder(here / "run").records()
    os.truncate(here / "run" / CHECKPOINT, 9)
    for _ in range(2):  # as the run wrote it, and again after resuming
        for arm in ("none", "wpl"):
            epochs = [r for r in records if (r["protection"], r["event"]) == (arm, "epoch")]
            flat = [{**r, **{f"seconds/{phase}": s for phase, s in r["seconds"].items()}} for r in epochs]
            found = shown_by_tensorboard(here / "run" / "tensorboard" / f"seed0-{arm}")
            numbers = {key for key, value in flat[0].items() if isinstance(value, int | float)}
            assert set(found) == numbers - {"seed", "epoch"}
            for tag, points in found.items():
                assert points == [(r["epoch"], pytest.approx(float(r[tag]))) for r in flat]
        assert main(["resume", "run", "--tensorboard"]) == 0
        records = RunFolder(here / "run").records()


def test_without_tensorboard_it_says_what_to_install(finished, capfd, monkeypatch):
    path, _ = finished
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for arguments in (tiny_search("--tensorboard", "--output", "new"), ["resume", "run", "--tensorboard"]):
        assert main(arguments) == 2
        error = capfd.readouterr().err
        assert error == (
            "forgetless: Expected the package tensorboard, but it is not installed. Run `pip install tensorboard`.\n"
        )
    assert not (path.parent / "new").exists()
    assert not (path / "tensorboard").exists()


def test_tensorboard_is_for_searches(here, capfd):
    assert main(["two-model", *SMALL, "--protection", "none", "--output", "run"]) == 0
    capfd.readouterr()
    assert main(["resume", "run", "--tensorboard"]) == 2
    assert "Expected a run with scalars for --tensorboard, but run is a run of two-model" in capfd.readouterr().err


def test_a_log_file_gets_lines_instead_of_a_bar(tmp_path, capsys, monkeypatch):
    """As often as is asked; without a terminal nothing is drawn."""
    options = (
        "--space",
        "nas201",
        "--nas201.units",
        "2",
        "--batch-size",
        "16",
        "--epochs",
        "2",
        "--models-per-epoch",
        "1",
    )
    options += ("--batches-per-model", "2", "--strategy-steps", "1", "--samples-per-step", "2", "--final-samples", "0")
    assert main(["search", *options, "--output", str(tmp_path / "quiet")]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(terminal, "_SECONDS_BETWEEN_LINES", 0.0)
    assert main(["search", *options, "--output", str(tmp_path / "told")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("1/2  seed 0 wpl: epoch 2, model 1/1  accuracy ") for line in lines)
    assert "\x1b" not in "".join(lines)


def test_another_package_may_have_imported_pydantic(here, capfd):
    """Cyclopts then validates options with it, and None stands for a default that depends on other options."""
    pytest.importorskip("pydantic", reason="comes with other packages")
    assert main(tiny_search("--output", "run")) == 0
    assert main(["compare", "--seeds", "1", "--workers", "0"]) == 2
    assert "validation error" not in capfd.readouterr().err
