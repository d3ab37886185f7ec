"""More searches that two processes make, against one process: every protection, every importance."""

import shutil

import pytest

import in_ranks
import test_ranks
from forgetless.protection import PROTECTIONS
from forgetless.runs import read_sealed
from test_ranks import close, codes, commands, records

pair = test_ranks.pair
pytestmark = test_ranks.pytestmark
NAMES = [k.name for k in PROTECTIONS.values() if k.works_in_ranks and not k.replaces_layers and k.matches is None]


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize("name", [*in_ranks.CONFIGS, *(f"{n} on {task}" for n in NAMES for task in ("images", "text"))])
def test_a_search_is_that_of_one_process(name):
    test_ranks.test_a_search_is_that_of_one_process(name)


@pytest.mark.usefixtures("pair")
@pytest.mark.parametrize("name", ["images, importance of training", "text, with dropout"])
def test_a_training_from_scratch_is_that_of_one_process(name):
    test_ranks.test_a_training_from_scratch_is_that_of_one_process(name)


def test_a_run_goes_on_with_any_number_of_processes_and_is_evaluated_by_several(tmp_path):
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    assert [code for code, _ in commands(stopped, *in_ranks.COMMAND, fault=(0, "signal"))] == [143, 143]
    one = shutil.copytree(stopped, tmp_path / "one")
    assert codes(one, "resume", "run", size=1) == [0]
    assert codes(stopped, "resume", "run") == [0, 0]
    close(records(stopped), records(one), 1e-4)
    evaluation = ["evaluate", "run", "--trainings", "trainings", "--batches", "2", "--top", "1"]
    ended = commands(stopped, *evaluation, "--workers", "2")
    assert [code for code, _ in ended] == [2, 2]
    assert "Expected either the 2 processes of torchrun, which make one training together" in ended[0][1]
    assert codes(stopped, *evaluation) == [0, 0]
    assert codes(one, *evaluation, "--workers", "1", size=1) == [0]
    (first,), (second,) = (read_sealed(path / "run" / "evaluation.json")["searches"] for path in (one, stopped))
    close(second["found_mean"], first["found_mean"], 1e-4)
