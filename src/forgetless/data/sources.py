"""Where files come from: local folders first, then one checked download over https into a cache.

Every data set is a few `Source` files. `fetch` looks for each in the folders of `search_folders` and, where a
source has an address, downloads it once into `cache_folder`. Nothing here knows what the bytes mean, and nothing
else in forgetless reaches the network for data.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin

import pooch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from forgetless.data.files import expanded, in_units, kind_of
from forgetless.errors import InputError, expect_one_of

DATA_VARIABLE = "FORGETLESS_DATA"
"""The environment variable that names a folder of data sets."""

DOWNLOAD_TIMEOUT_SECONDS = 30.0
"""How long a silent server is waited for, in seconds, when connecting and between two reads."""

SCHEMES = ("https",)
"""How data may be downloaded, redirects included."""


@dataclass(frozen=True)
class Source:
    """One file of a data set: where it may lie, what it must contain, and where it can be had.

    Attributes:
        paths: The relative paths looked for in each folder, in this order; those that end in `.gz` are read
            decompressed.
        sha256: The SHA-256 of the decompressed content in hexadecimal, or None where none was published.
        num_bytes: The size of the decompressed content, or None where it is not known.
        url: The address of a download, or None where the file has to be brought by the user.
        download_path: The path under the cache folder that the download gets; one of `paths`.
        download_hash: The checksum of the download in pooch's form, such as `md5:f68b…`.
        download_bytes: The most bytes that the download may have, or None for no limit; a compressed file is never
            much larger than its content.
    """

    paths: tuple[str, ...]
    sha256: str | None = None
    num_bytes: int | None = None
    url: str | None = None
    download_path: str | None = None
    download_hash: str | None = None
    download_bytes: int | None = None


def existing_path(name: str, what: str, names: Iterable[str]) -> Path:
    """The path that was given in the place of a name of data.

    Args:
        name: What was given.
        what: What it should be, for the message.
        names: The data that has a name.

    Returns:
        The path; `~` is the user's folder.

    Raises:
        InputError: If nothing is there, or it is neither a file nor a folder that can be looked at.
    """
    path = expanded(name)
    if kind_of(path) is None:
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
        folder = expanded(data_dir)
        if kind_of(folder) != "folder":
            raise InputError(f"Expected --data-dir to be a folder, but got {folder}. Name an existing folder.")
        return (folder,)
    named = os.environ.get(DATA_VARIABLE)
    return (expanded(named), cache_folder()) if named else (cache_folder(),)


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
        InputError: If the file is in none of the folders and cannot be downloaded, or is there and is no regular
            file, such as a pipe.
    """
    folders = search_folders(data_dir)
    may_download = data_dir is None and source.url is not None and source.download_path is not None
    downloaded = cache_folder() / str(source.download_path) if may_download else None
    found = "no such file"
    for path in (folder / name for folder in folders for name in source.paths):
        if path != downloaded and (kind := kind_of(path)) is not None:
            if kind == "file":
                return path
            found = f"the folder {path}"
    if may_download:
        return download(source)
    wanted = " or ".join(source.paths)
    where = " and ".join(str(folder) for folder in folders)
    raise InputError(
        f"Expected the file {wanted} in {where}, but got {found}. "
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
        InputError: If `source` has no address of https or no checksum, the server cannot be reached, refuses or sends
            too much, the cache cannot be written, or the checksum is wrong.
    """
    if source.url is None or source.download_path is None:
        raise InputError(
            f"Expected {source.paths[0]} to have an address, but got None. Name a local folder with "
            f"--data-dir or {DATA_VARIABLE}."
        )
    if source.download_hash is None:
        raise InputError(
            f"Expected the download {source.url} to have a checksum, but got None. Name a local folder with "
            f"--data-dir or {DATA_VARIABLE}."
        )
    _check_address(source.url)
    kind_of(cache_folder() / source.download_path)  # pooch would open a pipe, and wait
    try:
        return _retrieve(source.url, source.download_path, source.download_hash, source.download_bytes)
    except InputError:
        raise
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


def _retrieve(url: str, name: str, checksum: str, max_bytes: int | None) -> Path:
    """Let pooch download a file; it gets its name when its checksum is right."""
    progress = _DownloadProgress(Path(name).name) if sys.stderr.isatty() else None
    download_piecewise = pooch.HTTPDownloader(
        progressbar=progress or False,
        chunk_size=2**16,
        timeout=DOWNLOAD_TIMEOUT_SECONDS,
        hooks={"response": _check_redirect},
    )

    def download_within_limit(address: str, temporary: str, caller: object) -> None:
        with Path(temporary).open("wb") as stream:
            download_piecewise(address, _LimitedWriter(stream, address, max_bytes), caller)

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)  # pooch announces every download on stderr
    try:
        return Path(pooch.retrieve(url, checksum, fname=name, path=cache_folder(), downloader=download_within_limit))
    finally:
        logger.setLevel(level)
        if progress is not None:
            progress.close()


class _LimitedWriter:
    """A file for a download that takes no more than it should have, with what pooch asks of a file.

    Args:
        stream: The file.
        url: Where the download comes from, for the message.
        max_bytes: The limit; None for none.
    """

    def __init__(self, stream: IO[bytes], url: str, max_bytes: int | None) -> None:
        self._stream, self._url, self._max_bytes, self._num_bytes = stream, url, max_bytes, 0
        self.flush = stream.flush

    def write(self, piece: bytes) -> int:
        """Write a piece.

        Raises:
            InputError: If there are more bytes than the limit.
        """
        self._num_bytes += len(piece)
        if self._max_bytes is not None and self._num_bytes > self._max_bytes:
            raise InputError(
                f"Expected the download {self._url} to have at most {in_units(self._max_bytes)}, but got more. Try "
                f"again, or name a local folder with --data-dir or {DATA_VARIABLE}."
            )
        return self._stream.write(piece)


def _check_address(url: str) -> None:
    if url.partition("://")[0].lower() not in SCHEMES:
        raise InputError(
            f"Expected an address of {' or '.join(SCHEMES)}, but got {url}. Name a local folder with --data-dir or "
            f"{DATA_VARIABLE}."
        )


def _check_redirect(response: Any, **_: object) -> None:
    """Refuse to be sent on to an address that is not encrypted; requests calls this for every answer."""
    if response.is_redirect:
        address = response.headers["location"]
        with contextlib.suppress(ValueError):  # what is no address is refused as it is
            address = urljoin(response.url, address)
        _check_address(address)


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
