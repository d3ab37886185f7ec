"""Killed, and refused the disk, at every file operation and at random moments; and two that write at once."""

import contextlib
import random
import shutil
import subprocess
import time

import pytest
from reliability import Tally, report

from faults import COMMANDS, begin, ended, fresh, go_on, judged, outcome, run_forked, start_forked

KILLS = 100  # of each command
FULL = 60  # operations of each command at which the disk is full
AT_ONCE = 17  # of each command that has a run; 51 in all
LIMITS = (0, 100, 1000, 4000, 16_000, 64_000, 150_000)  # bytes of a file, and of a small disk beyond what is there


@pytest.fixture(scope="module", params=COMMANDS)
def prepared(request, tmp_path_factory):
    """A command, a folder to start it in, what it finds when nothing strikes, in how many operations and seconds."""
    command, place = request.param, tmp_path_factory.mktemp("faults")
    begin(command, place / "template")
    started = time.monotonic()
    last = run_forked(COMMANDS[command], fresh(place / "template", place / "whole"))
    assert (last.code, last.said) == (0, "")
    seconds = time.monotonic() - started
    return command, place / "template", outcome(command, place / "whole"), last.operations, seconds


def struck(prepared, folder, **fault):
    """Start a command that a fault strikes."""
    command, template, *_ = prepared
    return run_forked(COMMANDS[command], fresh(template, folder), **fault)


def sampled(places, most, seed):
    """All of them, or a sample of so many."""
    return sorted(random.Random(seed).sample(places, min(most, len(places))))


def test_killed_at_every_operation_and_at_random(prepared, tmp_path):
    command, _, whole, operations, seconds = prepared
    random.seed(command)
    tally = Tally()
    places = range(1, operations + 1)
    trials = [("at a file operation", {"at": at}) for at in sampled(places, KILLS * 3 // 4, command)]
    trials += [("at random", {"after": random.uniform(0, seconds)}) for _ in range(KILLS - len(trials))]
    for kind, fault in trials:
        folder = tmp_path / "struck"
        struck(prepared, folder, strike="kill", **fault)
        how, why = judged(command, folder, whole)
        tally.add(kind, how, f"{fault}: {why}")
        shutil.rmtree(folder)
    report(f"kills: {command}", tally.counts, operations=operations)
    assert tally.wrong == []


def test_the_disk_is_full_at_every_operation(prepared, tmp_path):
    """A sentence, exit code 2, the last good state; where it does not matter, such as to clean up, it goes on."""
    command, _, whole, operations, _ = prepared
    tally = Tally()
    for at in sampled(range(1, operations + 1), FULL, command):
        folder = tmp_path / "struck"
        last = struck(prepared, folder, at=at, strike="refuse")
        if last.code != 0 and not last.is_refusal:
            tally.add("an operation fails", "wrong", f"{at}: {last.code}: {last.said}")
        elif last.code == 0:
            same = outcome(command, folder) == whole
            tally.add("an operation fails", "identical" if same else "wrong", f"{at}: another result")
        else:
            how, why = judged(command, folder, whole)
            tally.add("an operation fails", "refused" if how == "identical" else how, f"{at}: {why}")
        shutil.rmtree(folder)
    for limit in LIMITS:
        folder = tmp_path / "struck"
        last = struck(prepared, folder, most_bytes=limit)
        assert last.code == 0 or last.is_refusal, last.said
        how, why = judged(command, folder, whole)
        tally.add("a file may not grow", "refused" if how == "identical" and last.code else how, f"{limit}: {why}")
        shutil.rmtree(folder)
    report(f"full disk: {command}", tally.counts, operations=operations)
    assert tally.wrong == []


@contextlib.contextmanager
def small_disk(place, num_bytes):
    """A file system of so many bytes."""
    place.mkdir(exist_ok=True)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "none", str(place)], capture_output=True)
    if made.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(prepared, tmp_path):
    command, template, whole, *_ = prepared
    begun = sum(path.stat().st_size + 4096 for path in template.rglob("*"))
    tally = Tally()
    for room in (8_000, 20_000, 40_000, 80_000, 160_000):
        with small_disk(tmp_path / "disk", begun + 8192 + room) as disk:
            folder = fresh(template, disk / "struck")
            last = run_forked(COMMANDS[command], folder)
            elsewhere = fresh(folder, tmp_path / f"saved-{room}")
        if last.code != 0 and not last.is_refusal:
            tally.add("tmpfs", "wrong", f"{room}: {last.code}: {last.said}")
            continue
        how, why = judged(command, elsewhere, whole)
        tally.add("tmpfs", "refused" if how == "identical" and last.code else how, f"{room}: {why}")
    report(f"small disk: {command}", tally.counts)
    assert tally.wrong == []


def test_two_that_go_on_at_once(prepared, tmp_path):
    """One does the work; the other is told that it is being done, or comes after it."""
    command, _, whole, operations, _ = prepared
    if command == "evaluate":
        pytest.skip("has no run of its own; trainings are stored in one step each")
    tally, at = Tally(), random.Random(command)
    for trial in range(AT_ONCE):
        folder = tmp_path / "struck"
        struck(prepared, folder, at=at.randint(operations // 4, operations // 2), strike="kill")
        started = [start_forked(["resume", "run"], folder) for _ in range(2)]
        both = [ended(each) for each in started]
        codes = sorted(each.code for each in both)
        refused = [each for each in both if each.code != 0]
        if codes not in ([0, 0], [0, 2]) or not all(each.is_refusal for each in refused):
            tally.add("two writers", "wrong", f"{trial}: {[(each.code, each.said) for each in both]}")
        elif outcome(command, folder) != whole:
            tally.add("two writers", "wrong", f"{trial}: another result")
        else:
            tally.add("two writers", "refused" if refused else "identical")
        assert go_on(command, folder).code == 0
        shutil.rmtree(folder)
    report(f"two writers: {command}", tally.counts)
    assert tally.wrong == []
