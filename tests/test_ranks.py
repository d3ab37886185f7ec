"""Several processes that train one model, as torchrun starts them, against one process."""

import multiprocessing
import socket

import pytest
import torch
import torch.distributed as dist

import in_ranks
from configs import without_time
from forgetless import InputError, ranks
from forgetless.cli import main
from forgetless.experiments import load_result
from forgetless.runs import RunFolder

SIZE = 2

pytestmark = [
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()), reason="needs torch.distributed with gloo"
    ),
    pytest.mark.usefixtures("without_pictures"),
]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def pair():
    """This process as the first of two, which may be called together; of one test, so that the next may fork again."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        # One process with one thread may fork; a new one would import for seconds.
        other = multiprocessing.get_context("fork").Process(
            target=in_ranks.another, args=(in_ranks.launched_as(1, SIZE, port),), daemon=True
        )
        other.start()
        for name, value in in_ranks.launched_as(0, SIZE, port).items():
            patch.setenv(name, value)
        with ranks.joined():
            yield
            ranks.dismiss()
        other.join(timeout=60)
        assert other.exitcode == 0


def in_both(function, *arguments):
    with ranks.together(function, *arguments):
        return function(*arguments)


def close(found, expected, tolerance=1e-9):
    """The same to rounding, whatever it is made of."""
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            close(found[name], value, tolerance)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            close(one, other, tolerance)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)
    else:
        assert found == expected


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize("name", ["images, importance of training"])
def test_a_search_is_that_of_one_process(name):
    expected, (weights,) = in_ranks.searched(name)
    found, both = in_both(in_ranks.searched, name)
    close(found, expected)
    close(both[0], weights)
    for one, other in zip(*both, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize("name", ["images, importance of training"])
def test_a_training_from_scratch_is_that_of_one_process(name):
    """Also where it was begun by another number of processes."""
    expected, last = in_ranks.trained(name)
    found, state = in_both(in_ranks.trained, name)
    close(found, expected)
    close(state | {"seconds": 0.0}, last | {"seconds": 0.0})
    _, begun = in_ranks.trained(name, 2)
    close(in_both(in_ranks.trained, name, None, begun)[0], expected)
    _, begun = in_both(in_ranks.trained, name, 2)
    close(in_ranks.trained(name, None, begun)[0], expected)


@pytest.mark.usefixtures("pair")
def test_batch_normalisation_is_of_the_whole_batch():
    close(in_both(in_ranks.normalised, ""), in_ranks.normalised(""), 1e-12)


@pytest.mark.usefixtures("pair")
def test_random_numbers_are_those_of_one_process():
    assert torch.equal(in_both(in_ranks.drawn, ""), in_ranks.drawn(""))


# ---- the command line --------------------------------------------------------------------------------------------


def commands(folder, *arguments, size=SIZE, fault=None):
    """Exit code and standard error of each process of a command."""
    port = free_port()
    started = []
    for rank in range(size):
        process = multiprocessing.get_context("fork").Process(
            target=in_ranks.command,
            args=(in_ranks.launched_as(rank, size, port), folder, arguments, fault),
            daemon=True,
        )
        process.start()
        started.append(process)
    for process in started:
        process.join(timeout=600)  # on a busy machine
    return [(process.exitcode, (folder / f"{rank}.txt").read_text()) for rank, process in enumerate(started)]


def codes(folder, *arguments, size=SIZE):
    return [code for code, _ in commands(folder, *arguments, size=size)]


@pytest.mark.parametrize("command", ["two-model", "landscape", "fine-tune", "compare", "benchmark", "interference"])
def test_commands_that_would_do_the_same_twice_are_refused(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for rank in range(SIZE):
        for name, value in in_ranks.launched_as(rank, SIZE, 1).items():
            monkeypatch.setenv(name, value)
        assert main([command, "--output", "run"]) == 2
        said = capsys.readouterr().err
        assert said == "" if rank else f"Expected one process for {command}, but torchrun has started 2." in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("size 16", "size 15", "Expected batches that 2 processes share in equal parts, but got 15 examples"),
        ("--output", "--workers 2 --output", "Expected either processes that train one model, which torchrun starts"),
        ("wpl", "budget", "Expected protections that do the same in 2 processes, but got budget."),
        ("--output", "--device meta --output", "Expected a device that this machine has"),
    ],
)
def test_what_processes_cannot_share_is_refused_in_one_sentence(old, new, message, tmp_path):
    first, *others = commands(tmp_path, *" ".join(in_ranks.COMMAND).replace(old, new).split())
    assert first[0] == 2
    assert message in first[1]
    assert first[1].count("\n") == 1
    assert others == [(2, "")]
    assert not (tmp_path / "run").exists()


def test_a_run_is_written_by_one_and_goes_on_alone(tmp_path):
    """Stopped by a signal to the second of two."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    assert codes(whole, *in_ranks.COMMAND, size=1) == [0]
    ended = commands(stopped, *in_ranks.COMMAND, fault=(1, "signal"))
    assert [code for code, _ in ended] == [143, 143]
    assert "go on with: forgetless resume run" in ended[0][1]
    assert (stopped / "run" / "checkpoint.pt").is_file()
    assert codes(stopped, "resume", "run", size=1) == [0]
    close(records(stopped), records(whole), 1e-4)


def test_an_error_of_one_process_ends_all(tmp_path):
    first, second = commands(tmp_path, *in_ranks.COMMAND, fault=(1, "error"))
    assert (first[0], second[0]) == (2, 2)
    assert "Expected all 2 processes to go on, but another one has ended." in first[1]
    assert second[1] == "forgetless: rank 1: Expected this process to be whole.\n"


def records(folder):
    return without_time(load_result(RunFolder(folder / "run")).records)


def test_without_several_processes_nothing_is_started(monkeypatch):
    assert ranks.launched() == 1
    monkeypatch.setenv("WORLD_SIZE", "8")  # as some schedulers set it
    assert ranks.launched() == 1
    for name, value in in_ranks.launched_as(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    assert ranks.launched() == 2
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(InputError, match="Expected numbers in RANK and WORLD_SIZE"):
        ranks.launched()
