"""Every run with pieces on a real Ray cluster of this machine, and an interruption of one."""

import json
import shutil
import signal

import pytest

from forgetless.cli import main
from forgetless.experiments.pieces import PIECES
from forgetless.runs import CHECKPOINT, METRICS, read_sealed
from processes import TINY, Command
from test_cluster import COMPARISON
from test_pieces import RUNS, records_of

pytestmark = [pytest.mark.usefixtures("without_pictures"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def _ray():
    pytest.importorskip("ray", reason="needs the extra ray")


@pytest.mark.parametrize("name", list(RUNS))
def test_ray_makes_the_records_of_one_process(name, tmp_path, two_texts):
    words = RUNS[name][1].format(texts=two_texts).split()
    assert main([name, *words, "--output", str(tmp_path / "here")]) == 0
    assert main([name, *words, "--cluster", "local", "--workers", "2", "--output", str(tmp_path / "there")]) == 0
    assert records_of(tmp_path / "there") == records_of(tmp_path / "here")


def test_ray_makes_the_numbers_of_a_comparison_in_one_process(tmp_path):
    assert main(["compare", *COMPARISON.split(), "--workers", "1", "--output", str(tmp_path / "here")]) == 0
    cluster = ["--cluster", "local", "--workers", "2"]
    assert main(["compare", *COMPARISON.split(), *cluster, "--output", str(tmp_path / "there")]) == 0
    unit = "random/seed-0"
    assert records_of(tmp_path / "there" / unit) == records_of(tmp_path / "here" / unit)
    here, there = (read_sealed(tmp_path / name / unit / "evaluation.json") for name in ("here", "there"))
    assert there["summary"] == here["summary"]


def test_an_interrupted_run_has_what_was_stored_there_and_goes_on_here(tmp_path):
    """A signal comes through to the cluster: the state that is stored because of it is in the folder here."""
    search = ["search", *TINY, "--epochs", "30", "--protection", "none", "--final-batches", "2", "--seeds", "1"]
    assert main([*search, "--output", str(tmp_path / "whole")]) == 0
    command = Command([*search, "--cluster", "local", "--workers", "1", "--output", "run"], tmp_path)
    piece = tmp_path / "run" / PIECES / "seed-0-none"
    try:
        command.wait_for(lambda: (piece / METRICS).is_file() and (piece / METRICS).stat().st_size > 0, seconds=120)
        command.send(signal.SIGTERM, "process")
        # On a busy machine the interpreter's own end takes seconds; test_every_signal.py has the limit of 5.
        assert command.seconds_until_gone(20) < 15
        code, _ = command.end()
        assert code == 128 + signal.SIGTERM
    finally:
        command.kill()
    begun = [json.loads(line) for line in (piece / METRICS).read_text().splitlines()]
    assert 0 < len(begun) < 31
    assert (piece / CHECKPOINT).is_file()
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert main(["resume", str(tmp_path / "run"), "--cluster", "none", "--workers", "1"]) == 0
    assert records_of(tmp_path / "run") == records_of(tmp_path / "whole")
    assert main(["resume", str(tmp_path / "copy")]) == 0  # on the cluster
    assert records_of(tmp_path / "copy") == records_of(tmp_path / "whole")
