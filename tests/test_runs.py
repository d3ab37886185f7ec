import json
import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from forgetless.errors import InputError
from forgetless.runs import (
    CHECKPOINT,
    CHECKPOINT_BEFORE,
    CONFIG,
    ENVIRONMENT,
    METRICS,
    RunFolder,
    environment,
    files,
    write_atomically,
)
from forgetless.runs.files import leftovers, seal, unseal
from forgetless.runs.replacement import PREVIOUS
from forgetless.runs.states import load_state, save_state

SOME = {"experiment": "two-model", "alpha": [1e5]}


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", {**SOME, "data_dir": None})


def content(path):
    """Every file below a folder, but for the lock's."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name not in {".lock", ".owner"}
    }


# What a run is asked, and where


def test_create_writes_config_and_environment(folder):
    written = tomllib.loads((folder.path / CONFIG).read_text())
    assert written == {**SOME, "version": environment()["forgetless"], "digest": folder.header.digest}
    assert folder.config == SOME
    assert folder.environment["torch"]
    assert folder.environment["device"] == "cpu"
    assert folder.records() == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Expected to be able to write in"):
        RunFolder.create(tmp_path / "file" / "run", SOME)


def test_no_run_folder(tmp_path):
    with pytest.raises(InputError, match=r"Expected a run folder with a config\.toml"):
        RunFolder(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"alpha = [", "Expected valid TOML"),
        (b"alpha = 1\xff", "Expected valid TOML"),
        (b"alpha = " + b"[" * 100_000, "Expected valid TOML"),
        (b"alpha = 1" + b"0" * 10_000, "Expected valid TOML"),
        (b'title = "My site"', "to name the experiment that wrote it, but got none"),
        (b'experiment = "search"', "to name the version that wrote it, but got none"),
        (b'experiment = 3\nversion = "0"\ndigest = "0"', "to name the experiment that wrote it, but got 3"),
        (b'experiment = "serch"\nversion = "0"\ndigest = "0"', "Did you mean 'search'"),
    ],
)
def test_a_config_that_no_run_wrote(tmp_path, text, message):
    (tmp_path / CONFIG).write_bytes(text)
    with pytest.raises(InputError, match=message):
        RunFolder(tmp_path)


def test_options_that_decide_a_number_may_not_be_edited(folder):
    path, text = folder.path / CONFIG, (folder.path / CONFIG).read_text()
    folder.expect_unedited()
    path.write_text(text + '[resources]\ndata_dir = "elsewhere"\nworkers = 3\n')
    RunFolder(folder.path).expect_unedited()
    path.write_text(text.replace("100000.0", "10000.0"))
    with pytest.raises(InputError, match="the options that the run was made with"):
        RunFolder(folder.path).expect_unedited()
    folder.save_checkpoint({"config": {"alpha": (1e5,), "models": 2}})
    with pytest.raises(InputError, match=r"but got alpha 10000\.0 \(there 100000\.0\)"):
        RunFolder(folder.path).expect_unedited()


def test_a_damaged_environment_is_not_shown(folder):
    path = folder.path / ENVIRONMENT
    for text in (path.read_text().replace("cpu", "gpu"), "{", "[]", '{"torch": "2"}'):
        path.write_text(text)
        with pytest.warns(UserWarning, match=r"environment\.json.*is not known"):
            assert RunFolder(folder.path).environment == {}
    path.unlink()
    assert RunFolder(folder.path).environment == {}


def test_environment_is_json_and_names_no_folder():
    text = json.dumps(environment())
    assert "/" not in text.replace("x86_64", "")


# Records


def test_records_come_back_as_appended(folder):
    records = [{"seed": 0, "accuracy": 0.1 + 0.2}, {"seed": 1, "curve": [1, 2], "name": 'ü "}\n'}]
    for record in records:
        folder.append(record)
    assert RunFolder(folder.path).records() == records
    folder.replace_records(records[::-1])
    folder.append(records[0])
    assert RunFolder(folder.path).records() == [*records[::-1], records[0]]


@pytest.mark.parametrize("cut", [b'{"se', b"{", b'{"seed": "\xc3', b"\0" * 100, b'{"seed": 1}'])
@pytest.mark.parametrize("before", [0, 1])
def test_a_line_cut_by_a_crash_is_left_out_by_readers_and_cut_off_by_the_next_writer(folder, cut, before):
    for seed in range(before):
        folder.append({"seed": seed})
    path = folder.path / METRICS
    whole = path.read_bytes()
    path.write_bytes(whole + cut)
    found = RunFolder(folder.path)
    assert len(found.records()) == before
    assert path.read_bytes() == whole + cut
    found.append({"seed": 9})
    assert len(found.records()) == before + 1
    assert path.read_bytes().startswith(whole)
    assert path.read_bytes().count(b"\n") == before + 1


def test_reading_changes_nothing(folder):
    folder.append({"seed": 0})
    (folder.path / METRICS).write_bytes((folder.path / METRICS).read_bytes() + b'{"se')
    before = {path: path.stat().st_mtime_ns for path in folder.path.iterdir()}
    read = RunFolder(folder.path)
    read.records(), read.environment, read.config, read.load_checkpoint()
    assert {path: path.stat().st_mtime_ns for path in folder.path.iterdir()} == before


LINES = {
    "changed": (lambda lines, _: [lines[0], lines[1].replace(b"0.25", b"0.26"), *lines[2:]], 2),
    "lost": (lambda lines, _: [lines[0], *lines[2:]], 2),
    "the first lost": (lambda lines, _: lines[1:], 1),
    "doubled": (lambda lines, _: [lines[0], lines[1], *lines[1:]], 3),
    "two exchanged": (lambda lines, _: [lines[1], lines[0], *lines[2:]], 1),
    "of another run": (lambda lines, other: [*lines, other[0]], 5),
    "of another run in its place": (lambda lines, other: [*lines[:2], other[2], *lines[3:]], 3),
    "all of another run": (lambda _, other: other, 1),
    "no JSON": (lambda lines, _: [lines[0], b'{"seed"', *lines[1:]], 2),
    "no object": (lambda lines, _: [lines[0], b"[1]", *lines[1:]], 2),
    "empty": (lambda lines, _: [lines[0], b"", *lines[1:]], 2),
    "no UTF-8": (lambda lines, _: [lines[0], lines[1].replace(b"seed", b"\xffeed"), *lines[2:]], 2),
    "without a digest": (lambda lines, _: [*lines, b'{"seed": 4}'], 5),
    "zeroed": (lambda lines, _: [*lines[:3], b"\0" * len(lines[3])], 4),
}


@pytest.mark.parametrize(("damage", "number"), LINES.values(), ids=LINES)
def test_a_damaged_line_is_refused_by_its_number(tmp_path, damage, number):
    folders = [RunFolder.create(tmp_path / name, {**SOME, "seeds": n}) for n, name in enumerate(("one", "two"))]
    for folder in folders:
        for seed in range(4):
            folder.append({"seed": seed, "accuracy": 0.25})
    lines, other = ((folder.path / METRICS).read_bytes().splitlines() for folder in folders)
    damaged = b"".join(line + b"\n" for line in damage(lines, other))
    (folders[0].path / METRICS).write_bytes(damaged)
    for use in (RunFolder.records, lambda folder: folder.append({"seed": 4})):
        with pytest.raises(InputError, match=rf"metrics\.jsonl, but line {number} is not the one that follows"):
            use(RunFolder(folders[0].path))
    assert (folders[0].path / METRICS).read_bytes() == damaged


@pytest.mark.parametrize("text", ['{"a": 1}', '{\n "a": [1,\n 2]\n}', '{"a": "\\"}"}', '{"digest": "x", "a": 1e308}'])
def test_a_sealed_object_is_read_back_and_every_flipped_bit_is_seen(text):
    sealed, digest = seal(text, "before")
    value = json.loads(text)
    value.pop("digest", None)
    assert unseal(sealed.encode(), "before") == (value, digest)
    with pytest.raises(ValueError, match="does not fit"):
        unseal(sealed.encode(), "another")
    raw = bytearray(sealed.encode())
    for bit in range(8 * len(raw)):
        raw[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"digest|JSON"):
            unseal(bytes(raw), "before")
        raw[bit // 8] ^= 1 << bit % 8


def test_a_disk_that_is_full_leaves_the_records_as_they_were(folder, monkeypatch):
    folder.append({"seed": 0})
    before = content(folder.path)

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("forgetless.runs.files.os.fsync", full)
    monkeypatch.setattr("forgetless.runs.records.os.fsync", full)
    for write in (
        lambda: folder.append({"seed": 1}),
        lambda: folder.save_checkpoint({"a": 1}),
        lambda: folder.save_trained(0, "wpl", {"a": 1}),
        lambda: folder.replace_records([]),
    ):
        with pytest.raises(InputError, match=r"able to write in .*: No space left on device\. What was stored"):
            write()
        assert content(folder.path) == before
    monkeypatch.undo()
    folder.append({"seed": 1})
    assert RunFolder(folder.path).records() == [{"seed": 0}, {"seed": 1}]


def test_a_folder_or_a_file_that_is_gone_is_not_made_again(folder):
    folder.append({"seed": 0})
    (folder.path / METRICS).unlink()
    with pytest.raises(InputError, match="No such file"):
        folder.append({"seed": 1})
    for path in folder.path.iterdir():
        path.unlink()
    folder.path.rmdir()
    with pytest.raises(InputError, match="it does not exist any more"):
        folder.append({"seed": 1})
    assert not folder.path.exists()


def test_what_another_process_wrote_is_not_written_over(folder):
    folder.append({"seed": 0})
    RunFolder(folder.path).append({"seed": 1})
    with pytest.raises(InputError, match="as this process left it"):
        folder.append({"seed": 1})
    assert folder.records() == [{"seed": 0}, {"seed": 1}]


# Checkpoints


def state(number):
    return {"number": number, "weights": {"a": torch.full((300,), float(number))}, "names": ["x"], "none": None}


def test_a_checkpoint_is_read_back_and_by_torch_too(folder):
    for number in (1, 2):
        folder.save_checkpoint(state(number))
    assert folder.load_checkpoint()["number"] == 2
    for name, number in ((CHECKPOINT, 2), (CHECKPOINT_BEFORE, 1)):
        found = torch.load(folder.path / name, weights_only=True)
        assert found["weights"]["a"].equal(torch.full((300,), float(number)))


def test_every_damage_of_a_checkpoint_is_seen_and_the_one_before_taken(folder):
    for number in (1, 2):
        folder.save_checkpoint(state(number))
    path = folder.path / CHECKPOINT
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    damages = [b"", whole[:-1], whole[:100], whole + b"x", whole[:-64], b"\0" * len(whole), whole[100:], b"PK\x03\x04"]
    for _ in range(200):
        place, bit = (int(torch.randint(n, (), generator=generator)) for n in (len(whole), 8))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        zeroed = bytearray(whole)
        zeroed[place : place + 64] = bytes(len(zeroed[place : place + 64]))
        damages += [bytes(flipped)] + [bytes(zeroed)] * (bytes(zeroed) != whole)
    for damaged in damages:
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"checkpoint\.pt is damaged .*; going on from the one before"):
            assert folder.load_checkpoint()["number"] == 1
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match=r"checkpoint\.pt is damaged \(it is no file\)"):
        assert folder.load_checkpoint()["number"] == 1


def test_no_code_of_a_checkpoint_runs(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    save_state(tmp_path / "a.pt", {"a": Evil()})
    with pytest.warns(UserWarning, match=r"a\.pt is damaged"):
        assert load_state(tmp_path / "a.pt", "leaving it out") is None
    assert not (tmp_path / "ran").exists()


def test_the_state_of_another_search_is_left_out(folder):
    state = {"arm": {"seed": 0, "protection": "wpl"}, "config": folder.header.options}
    folder.save_trained(0, "wpl", state)
    assert folder.load_trained(0, "wpl") is not None
    (folder.path / "trained-seed0-wpl.pt").rename(folder.path / "trained-seed1-wpl.pt")
    with pytest.warns(UserWarning, match="is the state of another search"):
        assert folder.load_trained(1, "wpl") is None
    name, value = next(iter(folder.header.options.items()))
    folder.save_trained(0, "wpl", {**state, "config": {**state["config"], name: f"not {value}"}})
    with pytest.warns(UserWarning, match="is the state of another search"):
        assert folder.load_trained(0, "wpl") is None


def test_a_missing_state_of_a_finished_search_is_told(folder):
    assert folder.load_trained(0, "wpl") is None
    with pytest.warns(UserWarning, match=r"trained-seed0-wpl\.pt is missing; leaving it out"):
        assert folder.load_trained(0, "wpl", is_finished=True) is None


def test_records_that_are_missing_beside_a_checkpoint_are_not_begun_again(folder):
    folder.save_checkpoint(state(1))
    (folder.path / METRICS).unlink()
    with (
        pytest.raises(InputError, match=r"Expected metrics\.jsonl beside checkpoint\.pt"),
        RunFolder(folder.path).writing(),
    ):
        pass


# One writer

WRITER = """
import sys, time
from forgetless.runs import RunFolder
with RunFolder(sys.argv[1]).writing():
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(folder):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_writer_is_refused_and_a_dead_one_taken_over(folder, writer):
    others = RunFolder(folder.path)
    for write in (
        lambda: others.append({"seed": 0}),
        lambda: others.save_checkpoint({}),
        lambda: RunFolder.create(folder.path, SOME, overwrite=True),
    ):
        with pytest.raises(InputError, match=rf"but process {writer.pid} on .* is writing there"):
            write()
    assert others.records() == []  # readers need no lock
    writer.kill()
    writer.wait()
    with pytest.warns(UserWarning, match=rf"process {writer.pid} on .* ended without finishing .*; taking over"):
        others.append({"seed": 0})
    others.append({"seed": 1})


def test_the_lock_is_taken_several_times_by_one_process(folder):
    with folder.writing(), folder.writing():
        folder.append({"seed": 0})
        with pytest.raises(InputError, match="for this process alone"):
            RunFolder(folder.path).append({"seed": 1})
    RunFolder(folder.path).append({"seed": 1})


def test_a_file_system_without_locks_is_told(folder, monkeypatch):
    def refuse(_self):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("filelock.FileLock._acquire", refuse)
    with pytest.warns(UserWarning, match="on a file system without locks"):
        folder.append({"seed": 0})
    assert folder.records() == [{"seed": 0}]


def test_what_killed_writers_left_is_removed(folder):
    (folder.path / f".{CHECKPOINT}.abc.part").write_bytes(b"half")
    RunFolder(folder.path).append({"seed": 0})
    assert leftovers(folder.path) == []


# Overwriting


def test_an_existing_run_is_kept_unless_told(folder):
    folder.append({"seed": 0})
    with pytest.raises(InputError, match=r"Expected an output folder that does not exist yet.*--overwrite"):
        RunFolder.create(folder.path, SOME)
    assert folder.records() == [{"seed": 0}]
    assert RunFolder.create(folder.path, SOME, overwrite=True).records() == []


def test_an_empty_folder_is_taken_and_what_a_killed_create_left(tmp_path):
    RunFolder.create(tmp_path / "a", SOME)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / f".{CONFIG}.123.part").touch()
    (tmp_path / "b" / ".lock").touch()
    RunFolder.create(tmp_path / "b", SOME)


SITES = {
    "a site": 'baseURL = "https://example.org"',
    "a crate": '[build]\ntarget = "x"',
    "empty": "",
    "no TOML": "[",
    "half a head": 'experiment = "search"',
    "an unknown experiment": 'experiment = "guess"\nversion = "0.1.0"\ndigest = "0"',
}


@pytest.mark.parametrize("text", SITES.values(), ids=SITES)
@pytest.mark.parametrize("by", ["path", ".", "parent", "link"])
def test_overwrite_never_removes_what_is_no_run(tmp_path, monkeypatch, text, by):
    site = tmp_path / "site"
    (site / "content").mkdir(parents=True)
    (site / "content" / "thesis.tex").write_text("years")
    (site / CONFIG).write_text(text)
    before = content(site)
    path = site
    if by == "link":
        path = tmp_path / "link"
        path.symlink_to(site)
    elif by != "path":
        monkeypatch.chdir(site if by == "." else site / "content")
        path = Path("." if by == "." else "..")
    with pytest.raises(InputError, match="Expected a run folder to overwrite, but"):
        RunFolder.create(path, SOME, overwrite=True)
    assert content(site) == before


@pytest.mark.parametrize("by", [".", "parent", "link", "home", "above home"])
def test_a_run_is_not_overwritten_by_way_of_a_folder_that_is_more(folder, monkeypatch, by):
    path = folder.path
    (path / "deep").mkdir()
    if by == "link":
        path = folder.path.parent / "link"
        path.symlink_to(folder.path)
    elif by in {".", "parent"}:
        monkeypatch.chdir(path if by == "." else path / "deep")
        path = Path("." if by == "." else "..")
    else:
        monkeypatch.setenv("HOME", str(path if by == "home" else path / "deep"))
    before = content(folder.path)
    with pytest.raises(InputError, match=r"is (above )?the (working|home) folder|is a link to"):
        RunFolder.create(path, SOME, overwrite=True)
    assert content(folder.path) == before


def old_run(tmp_path):
    """A run with everything that a run writes, and things of its owner's."""
    folder = RunFolder.create(tmp_path / "run", {**SOME, "experiment": "compare"})
    below = RunFolder.create(folder.path / "enas" / "seed-0", {**SOME, "experiment": "search"})
    for each in (folder, below):
        each.append({"seed": 0})
        each.save_checkpoint({"a": 1})
        each.save_checkpoint({"a": 2})
        each.save_trained(0, "wpl", {"a": 1})
    (folder.path / "tensorboard" / "seed0-wpl").mkdir(parents=True)
    for name in ("report.html", "tensorboard/seed0-wpl/events.out.tfevents.1", "interference.png"):
        (folder.path / name).write_text("made")
    (folder.path / "baselines").mkdir()
    (folder.path / "baselines" / f"{'0a' * 32}.json").write_text("made")
    for name in MINE:
        (folder.path / name).write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / REPORT).write_text("another's")
    (folder.path / "linked").symlink_to(tmp_path / "elsewhere")
    return folder


REPORT = "report.html"
MINE = {
    "notes.md",
    "enas/picture.png",
    "trained-seed0.txt",
    "tensorboard/mine",
    "enas/seed-0/diary",
    "baselines/mine.json",
}


def test_only_what_a_run_writes_is_replaced_and_the_rest_is_named(tmp_path):
    folder = old_run(tmp_path)
    with pytest.warns(UserWarning, match=r"keeps what no run wrote: .*notes\.md"):
        new = RunFolder.create(folder.path, SOME, overwrite=True)
    assert {name for name in content(folder.path) if not name.startswith(PREVIOUS)} == {
        *MINE,
        CONFIG,
        ENVIRONMENT,
        METRICS,
    }
    assert (folder.path / PREVIOUS / METRICS).read_bytes()  # until the new one has something to lose
    new.append({"seed": 5})
    assert set(content(folder.path)) == {*MINE, CONFIG, ENVIRONMENT, METRICS}
    assert (tmp_path / "elsewhere" / REPORT).read_text() == "another's"
    assert (folder.path / "linked").is_symlink()


def test_a_checkpoint_is_something_to_lose_too(folder):
    folder.append({"seed": 0})
    new = RunFolder.create(folder.path, SOME, overwrite=True)
    new.drop_previous()
    assert (folder.path / PREVIOUS).exists()
    new.save_checkpoint({})
    assert not (folder.path / PREVIOUS).exists()


def test_overwriting_a_run_that_has_nothing_yet_keeps_the_one_before_it(folder):
    folder.append({"seed": 0})
    before = (folder.path / METRICS).read_bytes()
    for alpha in (1.0, 2.0):
        new = RunFolder.create(folder.path, {**SOME, "alpha": [alpha]}, overwrite=True)
        assert (folder.path / PREVIOUS / METRICS).read_bytes() == before
    new.append({"seed": 7})
    RunFolder.create(folder.path, SOME, overwrite=True)
    assert RunFolder(folder.path / PREVIOUS).records() == [{"seed": 7}]


class _Killed(BaseException):
    pass


@pytest.mark.filterwarnings("ignore:.*keeps what no run wrote|.*is again the run|.*ended without finishing")
def test_killed_at_any_file_operation_the_old_run_or_the_new_is_there(tmp_path, monkeypatch):
    """Every rename and every removal of a replacement is the last one."""
    here = environment()  # asked once: it starts git
    operations = {"replace": os.replace, "unlink": os.unlink, "rmdir": os.rmdir, "rename": os.rename, "mkdir": os.mkdir}
    for last in range(200):
        place = tmp_path / str(last)
        place.mkdir()
        monkeypatch.setattr("forgetless.runs.folder.environment", lambda device: dict(here))
        folder = old_run(place)
        before = content(folder.path)
        done = 0

        def killing(name, last=last):
            def operation(*arguments, **options):
                nonlocal done
                done += 1
                if done > last:  # the process is dead: nothing more happens
                    raise _Killed
                return operations[name](*arguments, **options)

            return operation

        for name in operations:
            monkeypatch.setattr(f"os.{name}", killing(name))
        try:
            RunFolder.create(folder.path, {**SOME, "seeds": 3}, overwrite=True).append({"seed": 9})
            finished = True
        except _Killed:
            finished = False
        monkeypatch.undo()
        found = RunFolder.open_to_go_on(folder.path)
        if found.config.get("seeds") == 3:  # the new run
            assert found.records() in ([], [{"seed": 9}])
            aside = content(folder.path / PREVIOUS)
            assert found.records() or all(before[n] == data for n, data in aside.items()), last
        else:
            now = content(folder.path)
            assert {name: now[name] for name in before} == before, last
        assert set(content(folder.path)) >= MINE
        if finished:
            break
    assert finished
    assert last > 15


def test_write_atomically_leaves_the_old_text_on_failure(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("forgetless.runs.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_are_as_readable_as_others(tmp_path):
    write_atomically(tmp_path / "ours", "")
    (tmp_path / "theirs").touch()
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "theirs").stat().st_mode)


def test_what_a_writer_that_was_killed_long_ago_left_is_removed(tmp_path, monkeypatch):
    """In a folder with many writers, what another one is just writing stays."""
    monkeypatch.setattr(files, "_swept", set())
    old, new = tmp_path / ".a.json.x.part", tmp_path / ".a.json.y.part"
    other = tmp_path / ".part of something else"
    for path in (old, new, other):
        path.touch()
    os.utime(old, (1, 1))
    os.utime(other, (1, 1))
    files.write_atomically(tmp_path / "a.json", "{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [new.name, other.name, "a.json"]
