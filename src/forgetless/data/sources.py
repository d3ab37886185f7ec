"""Where bytes come from: local folders first, then one checked download, and a cache written atomically.

Every data set is a few `Source` files. `fetch` looks for each in the folders of `search_folders` and, where a
source has an address, downloads it once into `cache_folder`. Nothing here knows what the bytes mean.
"""

import contextlib
import gzip
import hashlib
import logging
import os
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pooch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from forgetless.errors import InputError, expect_one_of

DATA_VARIABLE = "FORGETLESS_DATA"
"""The environment variable that names a folder of data sets."""

DOWNLOAD_TIMEOUT_SECONDS = 30.0
"""How long a silent server is waited for, in seconds, when connecting and between two reads."""

ZIP_ERRORS = (OSError, EOFError, ValueError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)
"""What zipfile raises on damage; RuntimeError is for encryption and unknown compression, ValueError for bad names."""


@dataclass(frozen=True)
class Source:
    """One file of a data set: where it may lie, what it must contain, and where it can be had.

    Attributes:
        paths: The relative paths looked for in each folder, in this order; those that end in `.gz` are read
            decompressed.
        sha256: The SHA-256 of the decompressed content in hexadecimal, or None where none was published.
        url: The address of a download, or None where the file has to be brought by the user.
        download_path: The path under the cache folder that the download gets; one of `paths`.
        download_hash: The checksum of the download in pooch's form, such as `md5:f68b…`.
    """

    paths: tuple[str, ...]
    sha256: str | None = None
    url: str | None = None
    download_path: str | None = None
    download_hash: str | None = None


def existing_path(name: str, what: str, names: Iterable[str]) -> Path:
    """The path that was given in the place of a name of data.

    Args:
        name: What was given.
        what: What it should be, for the message.
        names: The data that has a name.

    Returns:
        The path; `~` is the user's folder.

    Raises:
        InputError: If nothing is there.
    """
    path = Path(name).expanduser()
    if not path.exists():
        if len(path.parts) > 1:
            raise InputError(f"Expected data to be a name or an existing path, but there is no {path}. Check the path.")
        expect_one_of(what, name, names)
    return path


def cache_folder() -> Path:
    """Return the folder for downloads and decoded images; it need not exist yet.

    Returns:
        The operating system's cache folder for `forgetless`, such as `~/.cache/forgetless` on Linux.
    """
    return Path(pooch.os_cache("forgetless"))


def search_folders(data_dir: str | Path | None) -> tuple[Path, ...]:
    """Return the folders to look in, in order.

    Args:
        data_dir: The folder the user named, or None. A named folder is the only one searched, so that a run
            never uses other data than the user meant.

    Returns:
        `data_dir` alone; without it, the folder in `FORGETLESS_DATA` if that is set, then the cache.

    Raises:
        InputError: If `data_dir` is not a folder.

    >>> len(search_folders("."))
    1
    >>> search_folders("no-such-folder")
    Traceback (most recent call last):
    forgetless.errors.InputError: Expected --data-dir to be a folder, but got no-such-folder. Name an existing folder.
    """
    if data_dir is not None:
        folder = Path(data_dir).expanduser()
        if not folder.is_dir():
            raise InputError(f"Expected --data-dir to be a folder, but got {folder}. Name an existing folder.")
        return (folder,)
    named = os.environ.get(DATA_VARIABLE)
    return (Path(named).expanduser(), cache_folder()) if named else (cache_folder(),)


def fetch(source: Source, data_dir: str | Path | None) -> Path:
    """Find one file of a data set, downloading it into the cache if it has to be.

    The cached copy of a download is checked against its checksum each time and downloaded again if it is
    damaged. A file that the user brought is checked by `read_source`, and is never replaced.

    Args:
        source: The file wanted.
        data_dir: The folder the user named, or None; see `search_folders`. With a folder nothing is
            downloaded.

    Returns:
        The path of the file found or downloaded.

    Raises:
        InputError: If the file is in none of the folders and cannot be downloaded.
    """
    folders = search_folders(data_dir)
    may_download = data_dir is None and source.url is not None and source.download_path is not None
    downloaded = cache_folder() / str(source.download_path) if may_download else None
    for folder in folders:
        for path in source.paths:
            if (folder / path).is_file() and folder / path != downloaded:
                return folder / path
    if may_download:
        return download(source)
    wanted = " or ".join(source.paths)
    where = " and ".join(str(folder) for folder in folders)
    raise InputError(
        f"Expected the file {wanted} in {where}, but got no such file. "
        f"Put it there, or name the folder that has it with --data-dir or {DATA_VARIABLE}."
    )


def download(source: Source) -> Path:
    """Download one file into the cache, unless an undamaged copy is there already.

    The file gets its name only once its checksum is right, so that a broken download leaves nothing behind.
    Progress is shown on stderr if that is a terminal.

    Args:
        source: The file wanted; it must have a `url` and a `download_path`.

    Returns:
        The path of the file in the cache.

    Raises:
        InputError: If `source` has no address, the server cannot be reached or refuses, the cache cannot be
            written, or the checksum is wrong.
    """
    if source.url is None or source.download_path is None:
        raise InputError(
            f"Expected {source.paths[0]} to have an address, but got None. Name a local folder with "
            f"--data-dir or {DATA_VARIABLE}."
        )
    progress = _DownloadProgress(Path(source.download_path).name) if sys.stderr.isatty() else None
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)  # pooch announces every download on stderr
    try:
        path = pooch.retrieve(
            source.url,
            known_hash=source.download_hash,
            fname=source.download_path,
            path=cache_folder(),
            downloader=pooch.HTTPDownloader(
                progressbar=progress or False, chunk_size=2**16, timeout=DOWNLOAD_TIMEOUT_SECONDS
            ),
        )
    except OSError as error:  # requests' exceptions are OSErrors too
        raise InputError(
            f"Expected to download {source.url} into {cache_folder()}, but got {_reason(error)}. "
            f"Check the network, or name a local folder with --data-dir or {DATA_VARIABLE}."
        ) from error
    except ValueError as error:  # pooch's word for a wrong checksum
        raise InputError(
            f"Expected the download {source.url} to have the checksum {source.download_hash}, but got another. "
            f"Try again, or name a local folder with --data-dir or {DATA_VARIABLE}."
        ) from error
    finally:
        logger.setLevel(level)
        if progress is not None:
            progress.close()
    return Path(path)


def _reason(error: BaseException) -> str:
    """Return the innermost cause of a failure in one line: urllib3 and requests wrap it several times."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")


class _DownloadProgress:
    """A bar on stderr with the four names that pooch asks of a progress bar."""

    def __init__(self, name: str) -> None:
        self._progress = Progress(
            TextColumn(name), BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=Console(stderr=True)
        )
        self._task = self._progress.add_task(name, total=None)
        self._progress.start()

    @property
    def total(self) -> float | None:
        """The size of the download in bytes, or None while the server has not told it."""
        return self._progress.tasks[0].total

    @total.setter
    def total(self, num_bytes: float) -> None:
        self._progress.update(self._task, total=num_bytes or None)

    def update(self, num_bytes: float) -> None:
        """Advance by `num_bytes`."""
        self._progress.update(self._task, advance=num_bytes)

    def reset(self) -> None:
        """Go back to nothing; pooch fills the bar to its end right after."""
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        """Leave the bar as it stands; closing it twice is harmless."""
        self._progress.stop()


def read_bytes(path: Path) -> bytes:
    """Read a whole file, decompressed if its name ends in `.gz`.

    Args:
        path: The file to read.

    Returns:
        The content in bytes.

    Raises:
        InputError: If the file cannot be read, or is damaged as a gzip file.

    >>> read_bytes(Path("no-such-file"))
    Traceback (most recent call last):
    forgetless.errors.InputError: Expected no-such-file to be readable, but got No such file or ...
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"Expected {path} to be readable, but got {error.strerror or error}. Check the file."
        ) from error
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"Expected {path} to be a whole gzip file, but got {error}. Download it again.") from error


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
        path: The file to read.
        algorithm: A name known to `hashlib`, such as `md5`.

    Returns:
        The checksum in hexadecimal.

    Raises:
        InputError: If the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, algorithm).hexdigest()
    except OSError as error:
        raise InputError(
            f"Expected {path} to be readable, but got {error.strerror or error}. Check the file."
        ) from error


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


@dataclass(frozen=True)
class FileTree:
    """The files of a folder or a .zip archive, read one by one and never unpacked.

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
def open_tree(path: Path) -> Iterator[FileTree]:
    """Open a folder or a .zip archive for reading.

    Args:
        path: An existing folder, or a .zip archive.

    Yields:
        Its files. Reading one raises InputError, naming it, if it is damaged.

    Raises:
        InputError: If `path` is neither a folder nor a .zip archive that can be read.
    """
    if path.is_dir():
        # Links are followed, because data sets are often put together of them.
        found = (
            Path(folder, name).relative_to(path).as_posix()
            for folder, _, names in os.walk(path, followlinks=True)
            for name in names
        )
        yield FileTree(path, _visible(found), lambda name: read_bytes(path / name))
        return
    try:
        archive = zipfile.ZipFile(path)
    except ZIP_ERRORS as error:
        raise InputError(
            f"Expected {path} to be a folder or a .zip archive, but got {error}. Check the file."
        ) from error

    def read(name: str) -> bytes:
        try:
            return archive.read(name)
        except ZIP_ERRORS as error:
            raise InputError(
                f"Expected {name} in {path} to be readable, but got {error}. Make the archive again."
            ) from error

    with archive:
        yield FileTree(path, _visible(entry.filename for entry in archive.infolist() if not entry.is_dir()), read)


def _visible(names: Iterator[str]) -> tuple[str, ...]:
    """Sort relative paths, leaving out hidden ones; the order does not depend on the file system."""
    return tuple(
        sorted(
            {name for name in names if not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))}
        )
    )
