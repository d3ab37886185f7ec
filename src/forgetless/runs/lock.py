"""One writer: a lock on a run folder that ends with its owner, however that ends."""

import contextlib
import datetime as dt
import errno
import json
import os
import socket
import warnings
from pathlib import Path

from filelock import FileLock, Timeout

from forgetless.errors import InputError

LOCK = ".lock"
"""The file that is locked. It stays, because removing a locked file lets two owners in."""
OWNER = ".owner"
"""Says who has the lock; where nobody has it, who died with it."""

# What a file system says that has no locks: NFS without its lock service, some FUSE and parallel file systems.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}


class FolderLock:
    """The right to write into a folder, for one process at a time; it may be taken several times in that process.

    The operating system's lock (`flock`) is used: it ends with the process, and on NFS it holds between machines as
    long as the server's lock service runs. Where a file system has no locks, a warning says so.

    Args:
        folder: An existing folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
        self._times = 0

    def acquire(self) -> None:
        """Take the lock; a dead owner's is taken over with a warning.

        Raises:
            InputError: If another process has it.
            OSError: If the folder cannot be written.
        """
        self._times += 1
        if self._times > 1:
            return
        try:
            self._folder.stat()  # the library would make a folder that is gone
            self._lock.acquire()
        except Timeout as error:
            self._times = 0
            raise InputError(
                f"Expected {self._folder} for this process alone, but {self._owner() or 'another process'} is writing "
                "there. Wait until it ends, or stop it."
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                self._times = 0
                raise
            warnings.warn(
                f"{self._folder} is on a file system without locks: make sure that no other process writes there.",
                stacklevel=3,
            )
            return
        if (dead := self._owner()) is not None:
            warnings.warn(f"{dead} ended without finishing {self._folder}; taking over.", stacklevel=3)
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
        with contextlib.suppress(OSError):  # this is for people; that the lock is held does not depend on it
            (self._folder / OWNER).write_text(json.dumps(owner), encoding="utf-8")

    def release(self) -> None:
        """Give the lock back, as often as it was taken."""
        self._times -= 1
        if self._times == 0 and self._lock.is_locked:
            with contextlib.suppress(OSError):
                (self._folder / OWNER).unlink(missing_ok=True)
            self._lock.release()

    def _owner(self) -> str | None:
        """Who has the lock, or, where nobody has it, who died with it."""
        try:
            found = json.loads((self._folder / OWNER).read_text(encoding="utf-8"))
            return f"process {int(found['pid'])} on {found['host']} (since {found['since']})"
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _now() -> str:
    return dt.datetime.now().astimezone().isoformat(timespec="seconds")
