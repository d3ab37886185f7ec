import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from forgetless.cli import main
from forgetless.experiments.two_model import TwoModelConfig
from forgetless.runs import METRICS, REPORT, RunFolder

SMALL = ["--seeds", "1", "--iterations", "20", "--iterations-a", "30", "--width", "16", "--evaluate-every", "10"]
RUN_KEYS = {
    "seed",
    "protection",
    "wiring",
    "shared",
    "convergence",
    "alpha",
    "accuracy_a_before",
    "accuracy_a_after",
    "accuracy_a_min",
    "accuracy_b",
    "forgetting",
    "seconds",
}


def without_time(runs):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in runs]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORGETLESS_DATA", raising=False)
    return tmp_path


def test_json_is_all_of_standard_output(here, capfd):
    assert main(["two-model", *SMALL, "--alpha", "1e3", "1e5", "--json", "--output", "run"]) == 0
    out = capfd.readouterr().out
    result = json.loads(out)
    assert set(result) == {"config", "environment", "runs", "summary"}
    assert len(result["runs"]) == len(result["summary"]) == 3 + 2 * 2
    assert all(set(run) >= RUN_KEYS for run in result["runs"])
    assert result["config"]["alpha"] == [1e3, 1e5]
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
        (["--alpha", "-1"], "Expected alpha to be finite and at least 0, but got -1.0"),
        (["--alpha", "nan"], "Expected alpha to be finite and at least 0, but got nan"),
        (["--alpha", "much"], "alpha"),
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
    assert "can be written" in capfd.readouterr().err


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


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_interrupted_at_any_moment_and_resumed(here, capfd, stop, code):
    arguments = ["two-model", "--seeds", "3", *SMALL[2:], "--protection", "none", "wpl", "freeze"]
    assert main([*arguments, "--output", "whole"]) == 0
    whole = RunFolder(here / "whole").records()
    process = subprocess.Popen(
        [sys.executable, "-m", "forgetless", *arguments, "--output", "run"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    metrics = here / "run" / METRICS
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(stop)
    error = process.communicate(timeout=60)[1]
    if process.returncode == 0:
        pytest.skip("the run finished before the signal")
    assert process.returncode == code
    if stop is signal.SIGINT:
        assert "go on with: forgetless resume run" in error
        assert "Traceback" not in error
    assert 3 <= len(RunFolder(here / "run").records()) < len(whole)
    capfd.readouterr()
    assert main(["resume", "run", "--json"]) == 0
    assert without_time(json.loads(capfd.readouterr().out)["runs"]) == without_time(whole)


def test_help_names_every_option(here, capfd):
    assert main(["two-model", "--help"]) == 0
    text = capfd.readouterr().out
    for name in TwoModelConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text
