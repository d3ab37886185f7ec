"""A search under torchrun itself, stopped as schedulers and people stop it."""

import signal

import pytest

from forgetless.cli import main
from forgetless.runs import CHECKPOINT, METRICS
from processes import TINY, Command

TORCHRUN = (
    "-m",
    "torch.distributed.run",
    "--nproc-per-node",
    "2",
    "--rdzv-backend",
    "c10d",
    "--rdzv-endpoint",
    "localhost:0",
)
SEARCH = ("search", *TINY, "--protection", "wpl", "--final-batches", "2", "--output", "run")

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.mark.parametrize(("number", "to"), [(signal.SIGTERM, "process"), (signal.SIGINT, "group")])
def test_a_signal_stops_all_with_a_state_to_go_on_from(number, to, tmp_path, monkeypatch):
    """Ctrl-C comes from the terminal, and once more from torchrun, which is no second request."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    command = Command([*SEARCH, "--epochs", "200"], tmp_path, TORCHRUN)
    metrics = tmp_path / "run" / METRICS
    try:
        command.wait_for(lambda: metrics.is_file() and metrics.stat().st_size > 0, seconds=300)
        command.send(number, to)
        assert command.seconds_until_gone(60) < 60
        _, said = command.end()
    finally:
        command.kill()
    assert "go on with: forgetless resume run" in said
    assert (tmp_path / "run" / CHECKPOINT).is_file()
    assert 0 < len(metrics.read_text().splitlines()) < 200


def test_a_search_is_written_once(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    command = Command([*SEARCH, "--epochs", "1"], tmp_path, TORCHRUN)
    try:
        assert command.seconds_until_gone(300) < 300
        code, said = command.end()
    finally:
        command.kill()
    assert code == 0, said
    assert len((tmp_path / "run" / METRICS).read_text().splitlines()) == 2
    monkeypatch.chdir(tmp_path)
    assert main(["resume", "run"]) == 0


def test_what_is_refused_is_said_once(tmp_path):
    command = Command(["two-model", "--output", "run"], tmp_path, TORCHRUN)
    try:
        command.seconds_until_gone(120)
        code, said = command.end()
    finally:
        command.kill()
    assert code == 1  # torchrun's own
    assert said.count("Expected one process for two-model, but torchrun has started 2.") == 1
    assert not (tmp_path / "run").exists()
