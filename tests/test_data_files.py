"""Reading files: regular ones only, decompressed within limits, whatever their names and whatever is wrong."""

import gzip
import hashlib
import io
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
