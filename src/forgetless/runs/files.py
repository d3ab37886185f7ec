"""Files that are whole at any moment, whatever kills their writer, and that show it when they were damaged later."""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from forgetless.errors import InputError

_PART = ".part"
"""The end of the name of a file that is being written."""

DIGEST_LENGTH = 16
"""Hexadecimal digits of a digest in JSON: 64 bits, against damage and mistakes, not against forgery."""
_SEALED = re.compile(rb',\s*"digest": "([0-9a-f]{%d})"\s*\}\s*\Z' % DIGEST_LENGTH)


@contextlib.contextmanager
def replacing(path: Path, *, before: Callable[[], object] = lambda: None) -> Iterator[IO[bytes]]:
    """A stream whose content takes the place of a file when the block ends without an exception.

    At any moment the file holds the old content or the new, whole; two writers get temporary files of their own.

    Args:
        path: The file; its folder must exist.
        before: Called when the new content is safe on the disk and the file is still the old one.

    Yields:
        A binary stream, readable too.

    Raises:
        OSError: If it cannot be written; the old file is then as it was.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=_PART)
    temporary = Path(name)
    _sweep(temporary)
    try:
        with os.fdopen(handle, "w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes private files; give the mode that the user's umask would.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        before()
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by new text, so that at any moment it holds the old text or the new, whole.

    Args:
        path: The file.
        text: Its new content.

    Raises:
        OSError: If it cannot be written; the old file is then as it was.
    """
    with replacing(path) as stream:
        stream.write(text.encode("utf-8", errors="surrogateescape"))


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, so that a renamed file is still renamed after a power cut.

    Args:
        folder: Which; nothing happens where the file system has no such call.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def leftovers(folder: Path) -> list[Path]:
    """The temporary files that killed writers left in a folder; those of a living writer too.

    Args:
        folder: Where `replacing` was used.
    """
    return sorted(path for path in folder.glob(f".*{_PART}") if path.is_file() and not path.is_symlink())


_STALE_SECONDS = 3600.0  # nothing here takes as long to write
_swept: set[Path] = set()


def _sweep(new: Path) -> None:
    """Once per process and folder: remove what writers that were killed long ago left half written.

    Where folders are locked their owner removes it at once; other folders, such as the store of trainings, have many
    writers. Ages are told by the clock of the file system, which may be another machine's.

    Args:
        new: A file that was made just now.
    """
    if new.parent in _swept:
        return
    _swept.add(new.parent)
    with contextlib.suppress(OSError):
        now = new.stat().st_mtime
        for old in leftovers(new.parent):
            if now - old.stat().st_mtime > _STALE_SECONDS:
                old.unlink(missing_ok=True)


# ---- content that shows damage -----------------------------------------------------------------------------------


def seal(text: str, previous: str = "") -> tuple[str, str]:
    """A JSON object with one more key, `digest`: the start of the SHA-256 of what precedes it.

    Args:
        text: A JSON object with at least one key.
        previous: A digest that the new one follows: of the line before, or of the configuration. A line that was lost,
            doubled, changed or taken from another run then does not fit any more.

    Returns:
        The object, without a final line end, and the digest.

    >>> seal('{"seed": 0}')
    ('{"seed": 0, "digest": "da0f5a8a645e8278"}', 'da0f5a8a645e8278')
    """
    body = text.rstrip().removesuffix("}").rstrip()
    separator = ",\n " if "\n" in body else ", "
    end = "\n}" if "\n" in body else "}"
    digest = _digest(body.encode(), previous)
    return f'{body}{separator}"digest": "{digest}"{end}', digest


def unseal(content: bytes, previous: str = "") -> tuple[dict[str, Any], str]:
    """Read a JSON object that `seal` wrote.

    Args:
        content: The object; surrounding white space does not matter.
        previous: As it was sealed with.

    Returns:
        The object without its digest, and the digest.

    Raises:
        ValueError: If it is no such object, or not what was written; the message says which, without a full stop.

    >>> unseal(b'{"seed": 0, "digest": "da0f5a8a645e8278"}')
    ({'seed': 0}, 'da0f5a8a645e8278')
    >>> unseal(b'{"seed": 1, "digest": "da0f5a8a645e8278"}')
    Traceback (most recent call last):
    ValueError: the digest does not fit
    """
    found = _SEALED.search(content)
    if found is None:
        raise ValueError("it has no digest at its end")
    digest = found[1].decode()
    if _digest(content[: found.start()].lstrip(), previous) != digest:
        raise ValueError("the digest does not fit")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    del value["digest"]
    return value, digest


def _digest(content: bytes, previous: str) -> str:
    return hashlib.sha256(previous.encode() + content).hexdigest()[:DIGEST_LENGTH]


def write_sealed(path: Path, values: Mapping[str, Any], previous: str = "") -> None:
    """Replace a JSON file, one value a line, so that `read_sealed` sees any later damage.

    Args:
        path: The file.
        values: JSON-serialisable; at least one key.
        previous: As for `seal`, such as the digest of the run that the values belong to.

    Raises:
        OSError: If it cannot be written.
    """
    write_atomically(path, seal(json.dumps(dict(values), indent=1, allow_nan=False), previous)[0] + "\n")


def read_sealed(path: Path, previous: str = "") -> dict[str, Any]:
    """What `write_sealed` wrote.

    Args:
        path: The file.
        previous: As it was written with.

    Raises:
        FileNotFoundError: If it is not there.
        InputError: If it cannot be read, or is not what was written.
    """
    content = read_content(path)
    try:
        return unseal(content, previous)[0]
    except ValueError as error:
        or_foreign = ", or belongs to another run" if previous else ""
        raise InputError(
            f"Expected {path} as forgetless wrote it, but it was changed or damaged{or_foreign}: {error}."
        ) from error


def read_content(path: Path) -> bytes:
    """A whole regular file.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If it is not there.
        InputError: If it is no regular file, which could be without end, or cannot be read.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"Expected a regular file, but {path} is of another kind. Remove it.")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"Expected a file that can be read, but got {path} ({error.strerror}).") from error
