"""Folders and .zip archives: the same files in both, links, what is no file, and archives that lie."""

import io
import os
import random
import stat
import struct
import tracemalloc
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


# Folders: links and what is no file


def names(path: Path) -> tuple[str, ...]:
    with trees.open_tree(path) as tree:
        return tree.names


@pytest.mark.parametrize("target", ["..", ".", "../..", "/"])
def test_a_link_back_up_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.setattr(trees, "MAX_ENTRIES", 100_000)
    write(tmp_path / "deep/folder/a/1.png", b"one")
    (tmp_path / "deep/folder/a/back").symlink_to(target)
    pattern = r"to have one name, but got .* again as .*\. Remove the link\.$|at most 100000 files|to be readable, but"
    with pytest.raises(InputError, match=rf"^Expected .*({pattern})"):
        names(tmp_path / "deep/folder")


def test_two_links_to_each_other_end(tmp_path: Path) -> None:
    for here, there in (("a", "b"), ("b", "a")):
        write(tmp_path / here / "1.png", b"one")
        (tmp_path / here / "other").symlink_to(f"../{there}")
    with pytest.raises(
        InputError, match=rf"^Expected each folder in {tmp_path} to have one name, but got [ab]/.* again"
    ):
        names(tmp_path)


def test_a_folder_under_two_names_is_refused(tmp_path: Path) -> None:
    """The same images would be in two classes, or in train and test."""
    write(tmp_path / "elsewhere/1.png", b"one")
    (tmp_path / "folder").mkdir()
    for name in ("a", "b"):
        (tmp_path / "folder" / name).symlink_to("../elsewhere")
    with pytest.raises(InputError, match=r"folder to have one name, but got [ab]/ again as [ab]/\. Remove the link\."):
        names(tmp_path / "folder")


def test_links_to_different_folders_and_to_files_are_followed(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / "elsewhere" / name / "1.png", name.encode())
    (tmp_path / "folder/c").mkdir(parents=True)
    for name in "ab":
        (tmp_path / "folder" / name).symlink_to(f"../elsewhere/{name}")
        (tmp_path / f"folder/c/{name}.png").symlink_to("../../elsewhere/a/1.png")
    (tmp_path / "folder/.hidden").symlink_to(".")  # not entered
    with trees.open_tree(tmp_path / "folder") as tree:
        assert tree.names == ("a/1.png", "b/1.png", "c/a.png", "c/b.png")
        assert [tree.read(name) for name in tree.names] == [b"a", b"b", b"a", b"a"]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("pipe", "to be a regular file, but got a named pipe"),
        ("device", "to be a regular file, but got a device"),
        ("nothing", "to be readable, but got No such file or directory"),
        ("itself", "to be readable, but got Too many levels of symbolic links"),
    ],
)
def test_what_is_no_file_is_refused_when_it_is_read(tmp_path: Path, kind: str, told: str) -> None:
    write(tmp_path / "a/1.png", b"one")
    bad = tmp_path / "a/2.png"
    if kind == "pipe":
        os.mkfifo(bad)
    else:
        bad.symlink_to({"device": "/dev/zero", "nothing": "no", "itself": "2.png"}[kind])
    with trees.open_tree(tmp_path) as tree:
        assert tree.read("a/1.png") == b"one"
        with pytest.raises(InputError, match=rf"^Expected {bad} {told}\."):
            tree.read("a/2.png")


def test_a_pipe_as_an_archive_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.zip")
    with pytest.raises(InputError, match=r"a\.zip to be a regular file, but got a named pipe\."):
        names(tmp_path / "a.zip")


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a/1.png", b"one")
    listed = os.scandir

    def scandir(path: Path) -> object:
        if path.name == "a":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=rf"^Expected {tmp_path}/a to be readable, but got Permission denied\."):
        names(tmp_path)


def test_a_folder_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        write(tmp_path / f"{number}", b"")
    monkeypatch.setattr(trees, "MAX_ENTRIES", 4)
    assert len(names(tmp_path)) == 4
    write(tmp_path / "more", b"")
    with pytest.raises(
        InputError, match=rf"^Expected {tmp_path} to have at most 4 files, links followed, but got more"
    ):
        names(tmp_path)


# Archives that lie


def archive_of(path: Path, contents: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as writer:
        for name, content in contents.items():
            writer.writestr(name, content)
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_stored_and_deflated_files_are_read(tmp_path: Path, compression: int) -> None:
    content = random.Random(0).randbytes(200_000) + bytes(200_000)
    path = archive_of(tmp_path / "a.zip", {"a": content, "empty": b""}, compression)
    with trees.open_tree(path) as tree:
        assert tree.read("a") == content
        assert tree.read("empty") == b""


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_cannot_be_decompressed_in_pieces_is_refused(tmp_path: Path, compression: int) -> None:
    path = archive_of(tmp_path / "a.zip", {"a": b"one"}, compression)
    pattern = rf"^Expected a in {path} to be stored or deflated, but got compression {compression}\. Unpack the archive"
    with trees.open_tree(path) as tree, pytest.raises(InputError, match=pattern):
        tree.read("a")


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/a", "a/..", "..", "aXb", "X"])
def test_names_outside_of_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    path = archive_of(tmp_path / "a.zip", {name: b"one", "b": b"two"})
    path.write_bytes(path.read_bytes().replace(b"X", b"\0"))
    pattern = rf"^Expected every file in {path} to have a relative path inside of it, but got '.*'\. Make the archive"
    with pytest.raises(InputError, match=pattern) as caught:
        names(path)
    assert str(caught.value).isprintable()


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("a/1.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as writer:
        writer.writestr(link, "/etc/passwd")
    with (
        trees.open_tree(tmp_path / "a.zip") as tree,
        pytest.raises(InputError, match=r"^Expected a/1\.png in .*a\.zip to be a regular file, but got a link\."),
    ):
        tree.read("a/1.png")


def declare(path: Path, num_bytes: int) -> None:
    """Let both headers of the only file of an archive say another size."""
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, 22, num_bytes)
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, num_bytes)
    path.write_bytes(content)


def test_a_declared_size_that_is_too_small_takes_no_memory(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "a.zip", {"a": bytes(50_000_000)})
    declare(path, 1000)
    tracemalloc.start()
    with (
        trees.open_tree(path) as tree,
        pytest.raises(InputError, match=rf"^Expected a in {path} to be readable, .*CRC"),
    ):
        tree.read("a")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def test_a_declared_size_that_is_too_large_is_told(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "a.zip", {"a": b"one"})
    declare(path, 1000)
    with (
        trees.open_tree(path) as tree,
        pytest.raises(InputError, match=r"^Expected a in .* to have 1000 bytes, but got 3"),
    ):
        tree.read("a")
    declare(path, 2**31)
    with (
        trees.open_tree(path) as tree,
        pytest.raises(InputError, match=r"to have at most 1 GiB, but got 2 GiB\. Leave"),
    ):
        tree.read("a")


def test_the_files_of_an_archive_have_a_ratio_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive_of(tmp_path / "a.zip", {f"{number}": bytes(500_000) for number in range(9)})
    monkeypatch.setattr("forgetless.data.files.RATIO_FREE_BYTES", 2**20)
    with trees.open_tree(path) as tree:
        assert len(tree.read("0") + tree.read("1")) == 1_000_000
        with pytest.raises(InputError, match=rf"^Expected the files in {path} to have at most 100 times its size"):
            tree.read("2")


def test_a_table_of_contents_that_is_too_large_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive_of(tmp_path / "a.zip", {f"{number}": b"" for number in range(1000)})
    monkeypatch.setattr(trees, "MAX_DIRECTORY_BYTES", 40_000)
    monkeypatch.setattr(zipfile, "ZipInfo", None)  # none is made
    with pytest.raises(
        InputError, match=rf"^Expected {path} to have a table of contents of at most 39\.1 KiB, but got"
    ):
        names(path)


def test_no_damage_to_an_archive_does_more_than_an_input_error(tmp_path: Path) -> None:
    dice = random.Random(0)
    path = tmp_path / "a.zip"
    whole = []
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", compression) as writer:
            for name in FILES:
                writer.writestr(name, FILES[name] * 50)
        whole.append(stream.getvalue())
    for _ in range(800):
        content = bytearray(dice.choice(whole))
        begin = dice.choice((0, content.index(b"PK\x01\x02")))
        for _ in range(dice.choice((1, 1, 2, 4))):
            content[dice.randrange(begin, len(content))] = dice.choice((0, 255, dice.randrange(256)))
        del content[dice.choice((len(content), len(content), dice.randrange(len(content)))) :]
        path.write_bytes(content)
        try:
            with trees.open_tree(path) as tree:
                for name in tree.names:
                    tree.read(name)
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017
