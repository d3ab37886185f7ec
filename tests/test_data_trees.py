"""Folders and .zip archives: the same files in both, links, what is no file, and archives that lie."""

import zipfile
from pathlib import Path

import pytest

from forgetless.data import trees
from forgetless.errors import InputError


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


FILES = {"b/2.png": b"two", "a/1.png": b"one", "B.txt": b"three"}
HIDDEN = ("a/.DS_Store", ".git/config", "__MACOSX/a/1.png", "a/.hidden/1.png")


def test_folders_and_archives_list_the_same_files(tmp_path: Path) -> None:
    folder, archive = tmp_path / "folder", tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as writer:
        writer.mkdir("empty")
        for name in (*FILES, *HIDDEN):
            write(folder / name, FILES.get(name, b"hidden"))
            writer.writestr(name, FILES.get(name, b"hidden"))
    for path in (folder, archive):
        with trees.open_tree(path) as tree:
            assert tree.path == path
            assert tree.names == ("B.txt", "a/1.png", "b/2.png")
            assert {name: tree.read(name) for name in tree.names} == FILES


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere/1.png", b"one")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a").symlink_to(tmp_path / "elsewhere")
    with trees.open_tree(tmp_path / "folder") as tree:
        assert tree.names == ("a/1.png",)


def test_a_file_that_is_no_archive_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", b"no archive")
    pattern = rf"^Expected {path} to be a folder or a \.zip archive, but got File is not a zip file\."
    with pytest.raises(InputError, match=pattern), trees.open_tree(path):
        pass


def test_a_damaged_entry_of_an_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as writer:
        writer.writestr("a/1.png", b"one")
    write(path, path.read_bytes().replace(b"one", b"two", 1))
    with (
        trees.open_tree(path) as tree,
        pytest.raises(InputError, match=rf"^Expected a/1\.png in {path} to be readable, but got Bad CRC-32"),
    ):
        tree.read("a/1.png")


def test_an_encrypted_entry_of_an_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as writer:
        writer.writestr("a/1.png", b"one")
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag in the entry's own header and in the table at the end
    content[content.index(b"PK\x01\x02") + 8] |= 1
    write(path, bytes(content))
    with (
        trees.open_tree(path) as tree,
        pytest.raises(InputError, match=r"^Expected a/1\.png in .* but got .* is encrypted"),
    ):
        tree.read("a/1.png")
