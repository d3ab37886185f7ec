import json
import stat
import tomllib

import pytest

from forgetless.errors import InputError
from forgetless.runs import CONFIG, METRICS, RunFolder, environment, write_atomically


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", {"experiment": "two-model", "alpha": [1e5], "data_dir": None})


def test_create_writes_config_and_environment(folder):
    assert tomllib.loads((folder.path / CONFIG).read_text()) == {"experiment": "two-model", "alpha": [1e5]}
    assert folder.environment["torch"]
    assert folder.environment["device"] == "cpu"
    assert folder.records() == []


def test_records_come_back_as_appended(folder):
    records = [{"seed": 0, "accuracy": 0.1 + 0.2}, {"seed": 1, "curve": [1, 2]}]
    for record in records:
        folder.append(record)
    assert RunFolder(folder.path).records() == records


def test_a_line_cut_by_a_crash_is_dropped_for_good(folder):
    folder.append({"seed": 0})
    whole = (folder.path / METRICS).read_bytes()
    for cut in (b'{"se', b"{", b'{"seed": "\xc3'):
        (folder.path / METRICS).write_bytes(whole + cut)
        assert folder.records() == [{"seed": 0}]
        assert (folder.path / METRICS).read_bytes() == whole


def test_first_line_cut(folder):
    (folder.path / METRICS).write_bytes(b'{"seed"')
    assert folder.records() == []
    folder.append({"seed": 0})
    assert folder.records() == [{"seed": 0}]


def test_damage_in_the_middle_is_told_with_its_line(folder):
    (folder.path / METRICS).write_text('{"seed": 0}\n{"se\n{"seed": 2}\n')
    with pytest.raises(InputError, match="line 2 is damaged"):
        folder.records()


def test_damaged_config(folder):
    (folder.path / CONFIG).write_text("alpha = [")
    with pytest.raises(InputError, match="Expected valid TOML"):
        _ = folder.config


def test_an_existing_run_is_kept_unless_told(folder):
    folder.append({"seed": 0})
    with pytest.raises(InputError, match=r"Expected an output folder that does not exist yet.*--overwrite"):
        RunFolder.create(folder.path, {})
    assert folder.records() == [{"seed": 0}]
    assert RunFolder.create(folder.path, {}, overwrite=True).records() == []


def test_overwrite_never_removes_what_is_no_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match=r"holds no config.toml"):
        RunFolder.create(tmp_path, {}, overwrite=True)
    with pytest.raises(InputError, match="does not exist yet"):
        RunFolder.create(tmp_path, {})
    with pytest.raises(InputError, match="does not exist yet"):
        RunFolder.create(tmp_path / "thesis.tex", {})
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_an_empty_folder_is_taken(tmp_path):
    RunFolder.create(tmp_path, {})


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can be written"):
        RunFolder.create(tmp_path / "file" / "run", {})


def test_no_run_folder(tmp_path):
    with pytest.raises(InputError, match=r"Expected a run folder with a config\.toml"):
        RunFolder(tmp_path)


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


def test_environment_is_json_and_names_no_folder():
    text = json.dumps(environment())
    assert "/" not in text.replace("x86_64", "")
