"""The files of a folder or a .zip archive, read one by one and never unpacked.

A folder's links are followed, because data sets are often put together of them, but no folder is entered twice: links
in a circle would never end, and two names of one folder would make its files count twice.
"""

import contextlib
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from forgetless.data.files import (
    MAX_ARCHIVE_BYTES,
    MAX_FILE_BYTES,
    MAX_RATIO,
    TooLargeError,
    in_units,
    kind_of,
    not_regular,
    open_regular,
    ratio_limit,
    read_bytes,
    reason_of,
    unreadable,
)
from forgetless.errors import InputError

MAX_ENTRIES = 2_000_000
"""The most files and folders that a folder may have."""

MAX_DIRECTORY_BYTES = 2**25
"""The most bytes that the table of contents of a .zip archive may have: 32 MiB, some 300,000 files."""

ZIP_ERRORS = (
    OSError,
    EOFError,
    ValueError,  # bad names, and places before the beginning
    RuntimeError,  # encryption and unknown compression
    OverflowError,
    MemoryError,  # a size that cannot be
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What zipfile raises on damage."""

_PIECE_BYTES = 2**16
_UNIX = 3  # of the systems that make archives, the one whose files have modes
_HIDDEN = "__MACOSX"  # the folder of archives made on a Mac that has no data


@dataclass(frozen=True)
class FileTree:
    """The files of a folder or a .zip archive.

    Attributes:
        path: The folder or archive.
        names: The relative paths of its files with `/` between the parts, sorted. Hidden files and the
            `__MACOSX` folder of archives made on a Mac are left out.
        read: Gives the content of one of `names`.
    """

    path: Path
    names: tuple[str, ...]
    read: Callable[[str], bytes]


@contextlib.contextmanager
def open_tree(path: Path, max_bytes: int = MAX_FILE_BYTES) -> Iterator[FileTree]:
    """Open a folder or a .zip archive for reading.

    Args:
        path: An existing folder, or a .zip archive.
        max_bytes: The most bytes that one of the files may have.

    Yields:
        Its files. Reading one raises InputError, naming it, if it is damaged, too large or no regular file.

    Raises:
        InputError: If `path` is neither a folder nor a .zip archive that can be read, if the folder has a folder
            twice, or the archive has a file outside of itself.
    """
    if kind_of(path) == "folder":
        yield FileTree(path, _visible(_walk(path)), lambda name: read_bytes(path / name, max_bytes=max_bytes))
        return
    with open_regular(path) as stream, _open_archive(stream, path) as archive:
        for entry in archive.infolist():
            _check_name(entry, path)
        entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
        left = min(ratio_limit(os.fstat(stream.fileno()).st_size), MAX_ARCHIVE_BYTES)

        def read(name: str) -> bytes:
            nonlocal left
            _check_entry(entries[name], path, max_bytes)
            left -= entries[name].file_size
            if left < 0:
                raise InputError(
                    f"Expected the files in {path} to have at most {MAX_RATIO} times its size decompressed, but got "
                    f"more at {name}. If you trust the archive, unpack it by hand and name the folder."
                )
            return _read_entry(archive, entries[name], path)

        yield FileTree(path, _visible(entries), read)


def _visible(names: Iterable[str]) -> tuple[str, ...]:
    """Sort relative paths, leaving out hidden ones; the order does not depend on the file system."""
    return tuple(sorted({name for name in names if not any(map(_is_hidden, name.split("/")))}))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == _HIDDEN


# ---- folders -----------------------------------------------------------------------------------------------------


def _walk(path: Path) -> Iterator[str]:
    """Give the relative paths of all files below a folder; hidden folders are not entered.

    What is no folder counts as a file here: pipes and links to nothing are refused when they are to be read.
    """
    seen: dict[tuple[int, int], str] = {}
    waiting = [""]
    num_entries = 0
    while waiting:
        below = waiting.pop()
        _enter(path, below, seen)
        for name, is_folder in _entries(path / below):
            num_entries += 1
            if num_entries > MAX_ENTRIES:
                raise InputError(
                    f"Expected {path} to have at most {MAX_ENTRIES} files, links followed, but got more. Name a "
                    "smaller folder."
                )
            if not is_folder:
                yield below + name
            elif not _is_hidden(name):
                waiting.append(f"{below}{name}/")


def _enter(path: Path, below: str, seen: dict[tuple[int, int], str]) -> None:
    """Note that a folder is entered, and refuse one that was entered before under another name."""
    try:
        status = (path / below).stat()
    except (OSError, ValueError) as error:
        raise unreadable(path / below, error) from error
    identity = status.st_dev, status.st_ino
    if identity in seen:
        raise InputError(
            f"Expected each folder in {path} to have one name, but got {seen[identity] or 'the folder itself'} again "
            f"as {below}. Remove the link."
        )
    seen[identity] = below


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """Return the names in a folder and whether each is a folder, or leads to one."""
    try:
        with os.scandir(folder) as entries:
            return [(entry.name, _leads_to_folder(entry)) for entry in entries]
    except OSError as error:
        raise unreadable(folder, error) from error


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, for one
        return False


# ---- archives ----------------------------------------------------------------------------------------------------


class _TableLimit:
    """A file that refuses to give a table of contents of more than `MAX_DIRECTORY_BYTES`.

    zipfile reads the whole table at once, and makes an object of some 500 bytes for each of its entries. No other
    read of it is as large.

    Args:
        stream: The archive.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes, all that are left if it is negative.

        Raises:
            TooLargeError: If that is more than a table of contents may have.
        """
        if size > MAX_DIRECTORY_BYTES:
            raise TooLargeError
        return self._stream.read(size)


@contextlib.contextmanager
def _open_archive(stream: IO[bytes], path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(_TableLimit(stream))
    except TooLargeError:
        raise InputError(
            f"Expected {path} to have a table of contents of at most {in_units(MAX_DIRECTORY_BYTES)}, but got more. "
            "Unpack the archive by hand and name the folder."
        ) from None
    except ZIP_ERRORS as error:
        raise InputError(
            f"Expected {path} to be a folder or a .zip archive, but got {reason_of(error)}. Check the file."
        ) from error
    with archive:
        yield archive


def _check_name(entry: zipfile.ZipInfo, path: Path) -> None:
    """Refuse an archive that has a file outside of itself, though nothing would be written there."""
    name = entry.orig_filename  # as it is in the archive: zipfile cuts the other one at a zero byte
    if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise InputError(
            f"Expected every file in {path} to have a relative path inside of it, but got {name!r}. Make the archive "
            "again."
        )


def _check_entry(entry: zipfile.ZipInfo, path: Path, max_bytes: int) -> None:
    """Refuse what is no regular file, cannot be read in pieces, or is too large by the table of contents."""
    mode = entry.external_attr >> 16 if entry.create_system == _UNIX else 0
    if stat.S_IFMT(mode) not in {0, stat.S_IFREG}:
        raise not_regular(f"{entry.filename} in {path}", mode)
    if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        # zipfile takes what they decompress to into memory whole: 2 GB of 1.5 kB with bzip2.
        raise InputError(
            f"Expected {entry.filename} in {path} to be stored or deflated, but got compression "
            f"{entry.compress_type}. Unpack the archive by hand and name the folder."
        )
    if entry.file_size > max_bytes:
        raise InputError(
            f"Expected {entry.filename} in {path} to have at most {in_units(max_bytes)}, but got "
            f"{in_units(entry.file_size)}. Leave it out."
        )


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> bytes:
    """Return the content of one file of an archive, which has the size that the table of contents says."""
    name = entry.filename
    pieces = []
    try:
        with archive.open(name) as stream:
            # Never more than the size in the table: the stream ends there, and checks the checksum.
            while piece := stream.read(_PIECE_BYTES):
                pieces.append(piece)
    except ZIP_ERRORS as error:
        raise InputError(
            f"Expected {name} in {path} to be readable, but got {reason_of(error)}. Make the archive again."
        ) from error
    content = b"".join(pieces)
    if len(content) != entry.file_size:
        raise InputError(
            f"Expected {name} in {path} to have {entry.file_size} bytes, but got {len(content)}. Make the archive "
            "again."
        )
    return content
