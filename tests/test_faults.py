"""A few of the faults that `make test-slow` tries by the thousand: kills, full disks, damage, two at once."""

import random
import shutil

import pytest

from faults import COMMANDS, begin, ended, fresh, judged, outcome, run_forked, start_forked
from mutations import damage, drawn_file, everything, states_of
from mutations import judged as judged_reading

COMMAND = "two-model"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An empty folder, what a run in one finds, and in how many file operations."""
    place = tmp_path_factory.mktemp("faults")
    begin(COMMAND, place / "template")
    last = run_forked(COMMANDS[COMMAND], fresh(place / "template", place / "whole"))
    assert (last.code, last.said) == (0, "")
    assert last.operations > 50
    return place / "template", outcome(COMMAND, place / "whole"), last.operations, place / "whole"


@pytest.mark.parametrize("share", [0.05, 0.5, 0.97])
def test_killed_at_a_file_operation(made, tmp_path, share):
    template, whole, operations, _ = made
    folder = fresh(template, tmp_path / "struck")
    assert run_forked(COMMANDS[COMMAND], folder, at=int(share * operations)).code == -9
    assert judged(COMMAND, folder, whole)[0] in {"identical", "warned"}


@pytest.mark.parametrize("share", [0.1, 0.7])
def test_the_disk_is_full_at_a_file_operation(made, tmp_path, share):
    template, whole, operations, _ = made
    folder = fresh(template, tmp_path / "struck")
    last = run_forked(COMMANDS[COMMAND], folder, at=int(share * operations), strike="refuse")
    assert last.code == 0 or last.is_refusal, last
    assert judged(COMMAND, folder, whole)[0] in {"identical", "warned"}


def test_a_file_that_may_not_grow(made, tmp_path):
    template, whole, *_ = made
    folder = fresh(template, tmp_path / "struck")
    assert run_forked(COMMANDS[COMMAND], folder, most_bytes=1000).is_refusal
    assert judged(COMMAND, folder, whole)[0] in {"identical", "warned"}


def test_two_that_go_on_at_once(made, tmp_path):
    template, whole, operations, _ = made
    folder = fresh(template, tmp_path / "struck")
    run_forked(COMMANDS[COMMAND], folder, at=operations // 3)
    both = [ended(each) for each in [start_forked(["resume", "run"], folder) for _ in range(2)]]
    assert sorted(each.code for each in both) in ([0, 0], [0, 2])
    assert all(each.code == 0 or each.is_refusal for each in both)
    assert outcome(COMMAND, folder) == whole


def test_damaged_folders_are_seen(made, tmp_path):
    template, _, operations, finished = made
    unfinished = fresh(template, tmp_path / "unfinished")
    run_forked(COMMANDS[COMMAND], unfinished, at=operations * 2 // 3)
    draw, outcomes = random.Random(0), set()
    for trial in range(40):
        source = draw.choice([finished, unfinished])
        told = everything(source / "run")
        states = states_of(source / "run")
        folder = fresh(source / "run", tmp_path / "run")
        path = drawn_file(folder, draw)
        what = damage(path, folder / ("environment.json" if path.name == "config.toml" else "config.toml"), draw)
        how, why = judged_reading(folder, told, states)
        assert how != "wrong", f"{trial} {path.name} {what}: {why}"
        outcomes.add(how)
        shutil.rmtree(folder)
    assert outcomes == {"identical", "warned", "refused"}
