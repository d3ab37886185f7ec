"""What a run records of the machine that made it, and what is said when it is gone on in elsewhere."""

import json
import os
import subprocess
import sys
import warnings

import pytest
import torch

from forgetless.cli import main
from forgetless.runs import ENVIRONMENT, RunFolder, environment, folder
from forgetless.runs.environment import DECIDING, differing

SMALL = ["--seeds", "1", "--iterations", "3", "--iterations-a", "3", "--evaluate-every", "3", "--width", "8"]


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "run", {"experiment": "two-model", "seeds": 2, "device": "cpu"})


def elsewhere(monkeypatch, **changes):
    """This process computes on another machine from now on."""
    here = environment()
    monkeypatch.setattr(folder, "environment", lambda device: here | changes)


def test_it_names_what_decides_the_last_bits():
    found = environment()
    assert set(DECIDING) <= found.keys()
    assert found["instruction_set"] == torch.backends.cpu.get_cpu_capability()
    assert found["onednn"] is None or found["onednn"].startswith("v")
    if "BLAS_INFO=mkl" in torch.__config__.show():
        assert "Math Kernel Library Version" in found["blas"]


def test_another_instruction_set_is_recorded():
    asked = "import json; from forgetless.runs import environment; print(json.dumps(environment()))"
    changed = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    made = subprocess.run([sys.executable, "-c", asked], env=changed, capture_output=True, text=True, check=True)
    found = json.loads(made.stdout)
    assert found["variables"] == "ATEN_CPU_CAPABILITY=default"
    assert found["instruction_set"] != environment()["instruction_set"]
    assert set(differing(environment(), found)) >= {"variables", "instruction_set"}


def test_how_many_cores_there_are_and_what_was_not_recorded_makes_no_difference():
    here = environment()
    assert differing(here, here) == {}
    assert differing(here | {"processor": "X (2 logical)"}, here | {"processor": "X (64 logical)"}) == {}
    assert differing({"torch": here["torch"]}, here) == {}  # as 0.1.0 recorded it at first
    assert differing(here | {"processor": "X (2 logical)"}, here | {"processor": "Y (2 logical)"}) == {
        "processor": "Y (2 logical)"
    }


def test_going_on_on_the_same_machine_says_nothing(run):
    run.append({"seed": 0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RunFolder(run.path).append({"seed": 1})
    assert "resumed_with" not in RunFolder(run.path).environment


def test_going_on_elsewhere_warns_once_and_is_recorded(run, monkeypatch):
    run.append({"seed": 0})
    before = run.environment
    elsewhere(monkeypatch, torch="9.9", instruction_set="AVX1024")
    again = RunFolder(run.path)
    with pytest.warns(UserWarning, match=r"gone on in with torch 9\.9 \(before 2.*instruction_set AVX1024") as told:
        again.append({"seed": 1})
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.append({"seed": 2})
    noted = {"after_records": 1, "torch": "9.9", "instruction_set": "AVX1024"}
    assert RunFolder(run.path).environment == before | {"resumed_with": [noted]}
    with warnings.catch_warnings():  # the same machine as last time
        warnings.simplefilter("error")
        RunFolder(run.path).append({"seed": 3})
    elsewhere(monkeypatch)
    with pytest.warns(UserWarning, match=r"gone on in with torch 2.* \(before 9\.9\)"):
        RunFolder(run.path).save_checkpoint({"seed": 3})
    assert [each["after_records"] for each in RunFolder(run.path).environment["resumed_with"]] == [1, 4]


def test_the_command_tells_it_and_the_report_shows_it(tmp_path, monkeypatch, capsys):
    path = tmp_path / "run"
    assert main(["two-model", *SMALL, "--protection", "none", "wpl", "--output", str(path)]) == 0
    made = RunFolder(path)
    made.replace_records(made.records()[:1])
    capsys.readouterr()
    elsewhere(monkeypatch, instruction_set="AVX1024")
    assert main(["resume", str(path)]) == 0
    assert "is gone on in with instruction_set AVX1024 (before " in " ".join(capsys.readouterr().err.split())
    page = (path / "report.html").read_text()
    assert "after records 1, instruction set AVX1024" in page
    assert json.loads((path / ENVIRONMENT).read_text())["resumed_with"]


def test_reading_a_finished_run_elsewhere_changes_and_says_nothing(run, monkeypatch):
    run.append({"seed": 0})
    content = (run.path / ENVIRONMENT).read_bytes()
    elsewhere(monkeypatch, torch="9.9")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RunFolder(run.path).records()
        with RunFolder(run.path).writing():
            pass
    assert (run.path / ENVIRONMENT).read_bytes() == content
