"""Reading files that somebody else made: regular files only, with limits on their size, and their checksums.

Nothing here trusts a name or a header. A pipe or a device is never opened, what is compressed is decompressed in
pieces up to a limit, and whatever goes wrong is an `InputError` that names the file.
"""

import gzip
import hashlib
import os
import stat
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Literal, Protocol

from forgetless.errors import InputError

MAX_FILE_BYTES = 2**30
"""The most bytes that one file may have, decompressed: 1 GiB."""

MAX_ARCHIVE_BYTES = 2**34
"""The most bytes that an archive may have on the disk, of which one file at a time is read: 16 GiB."""

MAX_RATIO = 100
"""How many times its compressed size a content may have; images and texts are compressed 2 to 50 times."""

RATIO_FREE_BYTES = 2**27
"""Up to so many bytes the ratio does not matter: 128 MiB."""

_PIECE_BYTES = 2**16

Kind = Literal["file", "folder"]

_SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
}


class Readable(Protocol):
    """What gives bytes in pieces: a file, or a decompressor over one."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none at the end."""


class TooLargeError(Exception):
    """A content has more bytes than it may have; whoever knows its name says so in an `InputError`."""


# ---- paths -------------------------------------------------------------------------------------------------------


def expanded(name: str | Path) -> Path:
    """Return a path in which `~` is the user's folder.

    Args:
        name: What the user gave.

    Returns:
        The path; nothing need be there.

    Raises:
        InputError: If it begins with the folder of a user that does not exist, such as `~nobody-here/data`.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"Expected {name} to begin with the folder of a user, but got no such user. Write the whole path."
        ) from error


def kind_of(path: Path) -> Kind | None:
    """Say what is at a path, following links.

    Args:
        path: Where to look.

    Returns:
        `file` for a regular file, `folder`, or None if nothing is there.

    Raises:
        InputError: If it is a pipe, a socket or a device, a link to nothing or to itself, or cannot be looked at:
            permission denied, a name that is too long or cannot be a name.

    >>> kind_of(Path(".")), kind_of(Path("no-such-file"))
    ('folder', None)
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise InputError(
                f"Expected {path} to be a file or a folder, but got a link to nothing. Mend or remove the link."
            ) from error
        return None
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if stat.S_ISDIR(mode):
        return "folder"
    if not stat.S_ISREG(mode):
        raise not_regular(str(path), mode)
    return "file"


def unreadable(path: Path, error: Exception) -> InputError:
    """Return the error for a file that the operating system does not let us read."""
    return InputError(f"Expected {path} to be readable, but got {reason_of(error)}. Check the path.")


def not_regular(name: str, mode: int) -> InputError:
    """Return the error for something that is no regular file, by its mode as in `os.stat_result`."""
    kind = _SPECIAL.get(stat.S_IFMT(mode), "something else")
    return InputError(f"Expected {name} to be a regular file, but got {kind}. Remove it, or name another path.")


def reason_of(error: BaseException) -> str:
    """Return what an exception says, in one line, or its name if it says nothing."""
    said = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(said.split()).rstrip(".") or type(error).__name__


# ---- contents ----------------------------------------------------------------------------------------------------


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading. Anything else is refused before it is opened.

    Opening a pipe waits for its writer, and opening a device may do anything.

    Args:
        path: The file; links are followed.

    Returns:
        The open file.

    Raises:
        InputError: If it is no regular file or cannot be opened.
    """
    try:
        if not stat.S_ISREG(mode := path.stat().st_mode):
            raise not_regular(str(path), mode)
        # Should a pipe have taken the file's place just now, opening it does not wait.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        stream = os.fdopen(descriptor, "rb")
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(mode := os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise not_regular(str(path), mode)
    return stream


def read_up_to(stream: Readable, max_bytes: int) -> bytes:
    """Read a stream to its end without ever holding much more than a limit.

    Args:
        stream: What to read.
        max_bytes: The limit.

    Returns:
        The whole content.

    Raises:
        TooLargeError: If there are more bytes than `max_bytes`.

    >>> import io
    >>> read_up_to(io.BytesIO(b"four"), 4)
    b'four'
    """
    pieces, num_bytes = [], 0
    while piece := stream.read(_PIECE_BYTES):
        num_bytes += len(piece)
        if num_bytes > max_bytes:
            raise TooLargeError
        pieces.append(piece)
    return b"".join(pieces)


class LimitedReader:
    """A stream that ends with `TooLargeError` instead of giving more than a limit.

    Args:
        stream: What to read.
        max_bytes: The limit.
    """

    def __init__(self, stream: Readable, max_bytes: int) -> None:
        self._stream, self._left = stream, max_bytes

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes; none at the end.

        Raises:
            TooLargeError: If that is more than the limit leaves.
        """
        piece = self._stream.read(size)
        self._left -= len(piece)
        if self._left < 0:
            raise TooLargeError
        return piece


def ratio_limit(num_compressed_bytes: int) -> int:
    """Return how many bytes may come out of so many compressed ones, by their ratio alone.

    >>> ratio_limit(10) == RATIO_FREE_BYTES, ratio_limit(10**9)
    (True, 100000000000)
    """
    return max(RATIO_FREE_BYTES, MAX_RATIO * num_compressed_bytes)


def read_bytes(path: Path, num_bytes: int | None = None, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Read a whole file, decompressed if its name ends in `.gz`.

    Args:
        path: The file to read.
        num_bytes: How many bytes the content is known to have; more are refused. None if that is not known.
        max_bytes: The limit if it is not known; for compressed content `MAX_RATIO` is another.

    Returns:
        The content in bytes.

    Raises:
        InputError: If the file is no regular file, cannot be read, is too large, or is damaged as a gzip file.

    >>> read_bytes(Path("no-such-file"))
    Traceback (most recent call last):
    forgetless.errors.InputError: Expected no-such-file to be readable, but got No such file or ...
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        is_packed = path.suffix == ".gz"
        limit = num_bytes if num_bytes is not None else min(max_bytes, ratio_limit(size)) if is_packed else max_bytes
        try:
            if not is_packed and size > limit:
                raise TooLargeError
            return read_up_to(gzip.GzipFile(fileobj=stream) if is_packed else stream, limit)
        except TooLargeError:
            if num_bytes is not None:
                raise _not_the_original(path, num_bytes) from None
            raise _too_large(path, limit, by_ratio=limit < max_bytes) from None
        except (OSError, EOFError, OverflowError, zlib.error, struct.error) as error:
            if not is_packed:
                raise unreadable(path, error) from error
            raise InputError(f"Expected {path} to be a whole gzip file, but got {error}. Download it again.") from error


def _not_the_original(path: Path, num_bytes: int) -> InputError:
    return InputError(
        f"Expected {path} to have a content of {num_bytes} bytes, but got more. The file is damaged or not the "
        "original: replace it."
    )


def _too_large(path: Path, limit: int, *, by_ratio: bool) -> InputError:
    if by_ratio:
        return InputError(
            f"Expected {path} to have at most {in_units(limit)} decompressed ({MAX_RATIO} times its size, or "
            f"{in_units(RATIO_FREE_BYTES)}), but got more. If you trust the file, decompress it by hand."
        )
    return InputError(
        f"Expected {path} to have a content of at most {in_units(limit)}, but got more. Take a part of it."
    )


def in_units(num_bytes: int) -> str:
    """Return a number of bytes in the largest unit that it has one of.

    >>> in_units(2**30), in_units(1234), in_units(5)
    ('1 GiB', '1.2 KiB', '5 bytes')
    """
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}".replace(".0 ", " ")
    return f"{num_bytes} bytes"


# ---- checksums and writing ---------------------------------------------------------------------------------------


def check_sha256(content: bytes, path: Path, expected: str | None) -> None:
    """Refuse content that is not the published one.

    Args:
        content: The decompressed content of the file.
        path: Where it came from, for the message.
        expected: The published SHA-256 in hexadecimal; None accepts everything.

    Raises:
        InputError: If the SHA-256 of `content` is not `expected`.

    >>> check_sha256(b"", Path("a.txt"), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    """
    if expected is None:
        return
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise InputError(
            f"Expected {path} to have the SHA-256 checksum {expected}, but got {found}. "
            "The file is damaged or not the original: replace it."
        )


def file_hash(path: Path, algorithm: str) -> str:
    """Return the checksum of a file without holding it in memory.

    Args:
        path: The file to read, of `MAX_ARCHIVE_BYTES` at most.
        algorithm: A name known to `hashlib`, such as `md5`.

    Returns:
        The checksum in hexadecimal.

    Raises:
        InputError: If the file is no regular file, cannot be read, or is too large.
    """
    with open_regular(path) as stream:
        if (size := os.fstat(stream.fileno()).st_size) > MAX_ARCHIVE_BYTES:
            raise InputError(
                f"Expected {path} to have at most {in_units(MAX_ARCHIVE_BYTES)}, but got {in_units(size)}. "
                "Unpack it by hand, or take a part of it."
            )
        try:
            return hashlib.file_digest(stream, algorithm).hexdigest()  # type: ignore[arg-type]
        except OSError as error:
            raise unreadable(path, error) from error


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name and rename it, so that no reader ever sees half of it.

    Args:
        path: The file to write; its folder is made if it is missing.
        write: Called once with a binary stream.

    Raises:
        BaseException: Whatever `write` or the file system raises; the temporary file is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".part", delete=False) as stream:
        temporary = Path(stream.name)
        try:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        except BaseException:
            temporary.unlink()
            raise
    temporary.replace(path)
