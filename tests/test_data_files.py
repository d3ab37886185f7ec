"""Reading files: regular ones only, decompressed within limits, whatever their names and whatever is wrong."""

import gzip
import hashlib
import io
import os
import random
import socket
import tracemalloc
from pathlib import Path

import pytest

from forgetless.data import files
from forgetless.errors import InputError

CONTENT = b"forty-two" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PACKED = gzip.compress(CONTENT, mtime=0)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_gzip_files_are_decompressed(tmp_path: Path) -> None:
    assert files.read_bytes(write(tmp_path / "a", PACKED)) == PACKED
    assert files.read_bytes(write(tmp_path / "a.gz", PACKED)) == CONTENT


@pytest.mark.parametrize(
    "damaged", [b"plain", PACKED[:-9], PACKED[:40] + b"?" + PACKED[41:], PACKED[:10] + b"\xff", b"\x1f"]
)
def test_a_damaged_gzip_file_is_told(tmp_path: Path, damaged: bytes) -> None:
    path = write(tmp_path / "a.gz", damaged)
    with pytest.raises(InputError, match=rf"^Expected {path} to be a whole gzip file, but got .*\. Download it again"):
        files.read_bytes(path)


def test_an_unreadable_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^Expected {tmp_path} to be a regular file, but got a folder\."):
        files.read_bytes(tmp_path)
    with pytest.raises(InputError, match=r"none to be readable, but got No such file or directory\."):
        files.file_hash(tmp_path / "none", "md5")


def test_checksums(tmp_path: Path) -> None:
    path = write(tmp_path / "a", CONTENT)
    assert files.file_hash(path, "md5") == hashlib.md5(CONTENT).hexdigest()
    files.check_sha256(CONTENT, path, SHA256)
    files.check_sha256(b"anything", path, None)
    found = hashlib.sha256(b"other").hexdigest()
    pattern = rf"^Expected {path} to have the SHA-256 checksum {SHA256}, but got {found}\."
    with pytest.raises(InputError, match=pattern):
        files.check_sha256(b"other", path, SHA256)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep/a"
    files.write_atomically(path, lambda stream: stream.write(b"old"))

    def interrupted(stream: io.BufferedWriter) -> None:
        stream.write(b"new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(path, interrupted)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


# What is no regular file, and names


def special(path: Path, kind: str) -> Path:
    """Make something that is neither a file nor a folder; return its path."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as unix:
            here = Path.cwd()
            os.chdir(path.parent)  # the path of a socket has 108 bytes at most
            try:
                unix.bind(path.name)
            finally:
                os.chdir(here)
    else:
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize(("kind", "told"), [("pipe", "a named pipe"), ("socket", "a socket"), ("device", "a device")])
@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_what_is_no_file_is_refused_and_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, told: str, name: str
) -> None:
    path = special(tmp_path / name, kind)
    monkeypatch.setattr(os, "open", None)
    for read in (files.read_bytes, files.kind_of, lambda path: files.file_hash(path, "md5")):
        with pytest.raises(InputError, match=rf"^Expected {path} to be a regular file, but got {told}\. Remove it"):
            read(path)


def test_a_pipe_that_takes_a_file_s_place_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a", CONTENT)
    opened = os.open

    def exchange_and_open(path: Path, flags: int) -> int:
        path.unlink()
        os.mkfifo(path)
        return opened(path, flags)

    monkeypatch.setattr(os, "open", exchange_and_open)
    with pytest.raises(InputError, match=r"to be a regular file, but got a named pipe\."):
        files.read_bytes(path)


def test_links_to_files_are_followed_and_others_told(tmp_path: Path) -> None:
    write(tmp_path / "a", CONTENT)
    (tmp_path / "link").symlink_to("a")
    assert files.read_bytes(tmp_path / "link") == CONTENT
    assert files.kind_of(tmp_path / "link") == "file"
    (tmp_path / "nothing").symlink_to("b")
    with pytest.raises(InputError, match=r"nothing to be a file or a folder, but got a link to nothing\. Mend or"):
        files.kind_of(tmp_path / "nothing")
    (tmp_path / "itself").symlink_to("itself")
    for read in (files.read_bytes, files.kind_of):
        with pytest.raises(InputError, match=r"itself to be readable, but got Too many levels of symbolic links\."):
            read(tmp_path / "itself")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a\0b", r"a\\x00b to be readable, but got .*null"),
        ("a\ud800", r"a\\ud800 to be readable, but got .*surrogates not allowed"),
        ("a" * 300, "to be readable, but got File name too long"),
    ],
)
def test_names_that_cannot_be_are_told_in_one_printable_line(tmp_path: Path, name: str, reason: str) -> None:
    for read in (files.read_bytes, files.kind_of, lambda path: files.file_hash(path, "md5")):
        with pytest.raises(InputError, match=reason) as caught:
            read(tmp_path / name)
        assert str(caught.value).isprintable()
        str(caught.value).encode()


def test_a_name_cannot_steer_the_terminal(tmp_path: Path) -> None:
    path = write(tmp_path / "\x1b[2J\n\u202e\udcff.gz", b"no gzip")
    with pytest.raises(InputError, match=r"\\x1b\[2J\\n\\u202e\\xff\.gz to be a whole gzip file") as caught:
        files.read_bytes(path)
    assert str(caught.value).isprintable()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may read everything")
def test_permission_denied_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "folder/a", CONTENT)
    path.parent.chmod(0)
    try:
        for read in (files.read_bytes, files.kind_of):
            with pytest.raises(InputError, match=r"to be readable, but got Permission denied\."):
                read(path)
    finally:
        path.parent.chmod(0o700)


def test_the_system_s_refusal_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a", CONTENT)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    for read in (files.read_bytes, files.kind_of):
        with pytest.raises(InputError, match=rf"^Expected {path} to be readable, but got Permission denied\."):
            read(path)


def test_the_folder_of_nobody_is_told() -> None:
    with pytest.raises(InputError, match=r"^Expected ~nobody-of-this-name/a to begin with the folder of a user"):
        files.expanded("~nobody-of-this-name/a")


# Limits


def test_a_known_size_is_the_limit(tmp_path: Path) -> None:
    for path in (write(tmp_path / "a", CONTENT), write(tmp_path / "a.gz", PACKED)):
        assert files.read_bytes(path, len(CONTENT)) == CONTENT
        with pytest.raises(InputError, match=rf"^Expected {path} to have a content of 8999 bytes, but got more\. The"):
            files.read_bytes(path, len(CONTENT) - 1)


def test_a_file_with_holes_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "read_up_to", None)
    path = write(tmp_path / "a", b"")
    os.truncate(path, 2**40)
    with pytest.raises(InputError, match=rf"^Expected {path} to have a content of at most 1 GiB, but got more\. Take"):
        files.read_bytes(path)
    with pytest.raises(InputError, match=rf"^Expected {path} to have at most 16 GiB, but got 1024 GiB\. Unpack it"):
        files.file_hash(path, "sha256")


def bomb(path: Path, num_bytes: int, num_members: int = 1) -> Path:
    member = gzip.compress(bytes(num_bytes), mtime=0)
    return write(path, member * num_members)


@pytest.mark.parametrize("num_members", [1, 40])
def test_a_bomb_is_refused_at_its_ratio_and_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_members: int
) -> None:
    path = bomb(tmp_path / "a.gz", 40_000_000 // num_members, num_members)
    monkeypatch.setattr(files, "RATIO_FREE_BYTES", 2**20)
    tracemalloc.start()
    pattern = (
        rf"^Expected {path} to have at most .* decompressed \(100 times its size, or 1 MiB\), but got more\. If you"
    )
    with pytest.raises(InputError, match=pattern):
        files.read_bytes(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


def test_a_bomb_is_refused_at_the_absolute_limit(tmp_path: Path) -> None:
    path = bomb(tmp_path / "a.gz", 1_000_000)
    with pytest.raises(InputError, match=r"to have a content of at most 976\.6 KiB, but got more\."):
        files.read_bytes(path, max_bytes=999_999)
    assert len(files.read_bytes(path, max_bytes=1_000_000)) == 1_000_000  # below 128 MiB the ratio does not matter


def test_no_damage_to_a_gzip_file_does_more_than_an_input_error(tmp_path: Path) -> None:
    dice = random.Random(0)
    path = tmp_path / "a.gz"
    for _ in range(300):
        content = bytearray(PACKED * dice.choice((1, 2)))
        for _ in range(dice.choice((1, 1, 3))):
            content[dice.randrange(dice.choice((12, len(content))))] = dice.randrange(256)
        del content[dice.choice((len(content), dice.randrange(len(content)))) :]
        write(path, bytes(content))
        try:
            files.read_bytes(path)
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017
