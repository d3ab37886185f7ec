"""A run folder: what was asked, on what machine, and every result as it came; enough to go on after any interruption.

| file | content |
|---|---|
| `config.toml` | which experiment and version wrote it, and the complete configuration |
| `environment.json` | versions, git revision, device |
| `metrics.jsonl` | one JSON object per finished unit of work; docs/metrics.md explains every key |
| `checkpoint.pt` | what a search goes on from; `checkpoint-before.pt` is the one before |
| `trained-seed0-wpl.pt` | what a search's arm had come to after its last epoch; one per finished arm |
| `interference.json`, `.png` | who overwrites whom on these, if it was measured |
| `evaluation.json` | what its architectures are worth against random ones, if that was asked |
| `enas/seed-3/` | the run folder of a search that is part of a comparison; one per strategy and seed |
| `report.html` | made from the others, never read |
| `.lock`, `.owner` | one writer at a time: see `forgetless.runs.lock` |
| `.previous/` | the run that `--overwrite` replaces, until this one has a record or a checkpoint |
| `tensorboard/` | the same, where it is asked for |
"""

import contextlib
import errno
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from forgetless.configuration import differing_options
from forgetless.errors import InputError
from forgetless.runs.environment import differing, environment
from forgetless.runs.files import leftovers, read_sealed, write_atomically, write_sealed
from forgetless.runs.lock import LOCK, OWNER, FolderLock
from forgetless.runs.names import (
    CHECKPOINT,
    CHECKPOINT_BEFORE,
    CONFIG,
    ENVIRONMENT,
    EXPERIMENT,
    METRICS,
    RESUMED,
    Header,
    config_text,
    read_header,
)
from forgetless.runs.records import Record, RecordFile
from forgetless.runs.replacement import PREVIOUS, drop_previous, expect_replaceable, put_back, set_aside
from forgetless.runs.states import load_state, save_state

R = TypeVar("R")


class RunFolder:
    """An existing run folder. Reading it takes no lock and changes nothing; writing takes the lock.

    Args:
        path: The folder.

    Raises:
        InputError: If it is no run folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        _expect_path(self.path)
        self.header: Header = read_header(self.path)
        self._lock = FolderLock(self.path)
        self._records = RecordFile(self.path / METRICS, self.header.digest)
        self._is_prepared = False
        self._is_compared = False
        self._device = "cpu"

    @classmethod
    def create(
        cls, path: str | Path, config: Mapping[str, Any], *, device: str = "cpu", overwrite: bool = False
    ) -> "RunFolder":
        """Make a run folder for a new run.

        Args:
            path: Where; parents are made.
            config: The experiment and the complete configuration; None values are left out of the TOML file.
            device: The device that does the work.
            overwrite: Replace an existing run: its files are moved aside, and deleted when the new run has its first
                record or checkpoint. What no run wrote stays.

        Returns:
            The folder, without metrics.

        Raises:
            InputError: If the path exists and is not to be overwritten or no run, another process writes there, or it
                cannot be written.
        """
        path = Path(path)
        _expect_path(path)
        _recover(path)
        with writing_to(path):
            is_occupied = path.is_symlink() or (path.exists() and not _is_empty(path))
            if is_occupied and not overwrite:
                is_run = (path / CONFIG).is_file()
                advice = "Resume it with `forgetless resume`, or pass --overwrite." if is_run else "Choose another."
                raise InputError(f"Expected an output folder that does not exist yet, but got {path}. {advice}")
            if is_occupied:
                expect_replaceable(path)
            path.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(path)
            lock.acquire()
            try:
                if is_occupied:
                    set_aside(path)
                # First, because a folder with a configuration is a run: what else is missing is made with the lock.
                write_atomically(path / CONFIG, config_text(config))
            except BaseException:
                put_back(path)
                raise
            finally:
                lock.release()
        folder = cls(path)
        with folder.writing(device):
            return folder

    @classmethod
    def open_to_go_on(cls, path: str | Path) -> "RunFolder":
        """A run folder to go on in; where `--overwrite` was interrupted, the run that it was to replace.

        Args:
            path: The folder.

        Raises:
            InputError: As the class; or if another process writes there.
        """
        _expect_path(Path(path))
        _recover(Path(path))
        return cls(path)

    @contextlib.contextmanager
    def writing(self, device: str = "cpu") -> Iterator[None]:
        """Within it this process alone writes here; what an earlier writer left half done is repaired first.

        Args:
            device: The device that does the work, where the environment is still to be recorded.

        Raises:
            InputError: If another process writes here, the records are damaged, or the folder cannot be written.
        """
        with writing_to(self.path):
            self._lock.acquire()
        try:
            if not self._is_prepared:
                self._device = device
                with writing_to(self.path):
                    for part in leftovers(self.path):
                        part.unlink(missing_ok=True)
                    self._expect_records()
                    self._records.repair()
                    if not (self.path / ENVIRONMENT).exists():
                        write_sealed(self.path / ENVIRONMENT, environment(device), self.header.digest)
                self._is_prepared = True
            yield
        finally:
            self._lock.release()

    def _expect_records(self) -> None:
        if not (self.path / METRICS).exists() and (self.path / CHECKPOINT).exists():
            raise InputError(
                f"Expected {METRICS} beside {CHECKPOINT} in {self.path}, but it is missing. Put it back, or remove the "
                "checkpoint to begin again."
            )

    @property
    def config(self) -> dict[str, Any]:
        """The experiment and the options, as config.toml has them."""
        return {EXPERIMENT: self.header.experiment, **self.header.options}

    def expect_unedited(self) -> None:
        """Refuse options that are not those that the run was made with.

        Raises:
            InputError: If config.toml was edited; the message names the options where a checkpoint knows them.
        """
        if not self.header.is_edited:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = self.load_checkpoint() or {}
        stored = state.get("config", {})
        told = differing_options(self.header.options, stored) if stored else ""
        raise InputError(
            f"Expected the options that the run was made with in {self.path / CONFIG}, but got {told or 'others'}. Put "
            "the old values back, or start another run."
        )

    @property
    def environment(self) -> dict[str, Any]:
        """What environment.json says; nothing where it is gone or damaged, which a warning tells."""
        path = self.path / ENVIRONMENT
        try:
            return read_sealed(path, self.header.digest)
        except FileNotFoundError:
            return {}
        except InputError as error:
            warnings.warn(f"{error} The environment of the run is not known.", stacklevel=2)
            return {}

    def _note_environment(self) -> None:
        """Once, before the first result of this process: record and tell it if others were made elsewhere."""
        if self._is_compared:
            return
        self._is_compared = True
        recorded = self.environment
        earlier = recorded.get(RESUMED, [])
        last = {**recorded, **{name: value for each in earlier for name, value in each.items()}}
        different = differing(last, environment(self._device))
        if not different:
            return
        told = ", ".join(f"{name} {value} (before {last[name]})" for name, value in different.items())
        warnings.warn(
            f"{self.path} is gone on in with {told}. Its numbers from here on are not bit for bit those of a run that "
            "was never interrupted; docs/reproducibility.md says what they may differ by.",
            stacklevel=3,
        )
        noted = [*earlier, {"after_records": len(self.records()), **different}]
        write_sealed(self.path / ENVIRONMENT, {**recorded, RESUMED: noted}, self.header.digest)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl and force it to the disk.

        Args:
            record: JSON-serialisable values.

        Raises:
            InputError: If it cannot be written, or another process writes here.
        """
        with self.writing(), writing_to(self.path):
            self._note_environment()
            self._records.append(record)
            drop_previous(self.path)

    def replace_records(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Set metrics.jsonl to other records, in one step.

        Args:
            records: JSON-serialisable values.

        Raises:
            InputError: As `append`.
        """
        with self.writing(), writing_to(self.path):
            self._records.replace(records)

    def records(self) -> list[Record]:
        """What metrics.jsonl holds. A last line cut short by a crash is left out; the file stays as it is.

        Returns:
            One dict per line.

        Raises:
            InputError: If a line is not the one that the run wrote there.
        """
        return self._records.read()

    def read_records(self, read: Callable[..., R]) -> Iterator[tuple[R, str]]:
        """Each record of `records`, and where it was found, for messages.

        Args:
            read: Makes a record of the object of a line; `where` is the line, for messages.

        Yields:
            The record, and where.

        Raises:
            InputError: As `records`, or as `read` does.
        """
        for line, values in enumerate(self.records(), start=1):
            where = f"line {line} of {self.path / METRICS}"
            yield read(values, where=where), where

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Store a state to go on from, and keep the one before; a crash at any moment leaves at least one of them.

        Args:
            state: Tensors, numbers, strings, lists and dicts of them.

        Raises:
            InputError: As `append`.
        """
        path = self.path / CHECKPOINT

        def keep() -> None:
            if path.exists():
                path.replace(self.path / CHECKPOINT_BEFORE)

        with self.writing(), writing_to(self.path):
            self._note_environment()
            save_state(path, state, before=keep)
            drop_previous(self.path)

    def drop_previous(self) -> None:
        """Delete the run that this one replaced, if it has something to lose itself, such as a search's records.

        Raises:
            InputError: As `append`.
        """
        with self.writing(), writing_to(self.path):
            drop_previous(self.path)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The newest state that can be read; None if there is none. A damaged one is skipped with a warning."""
        paths = (self.path / name for name in (CHECKPOINT, CHECKPOINT_BEFORE))
        states = (load_state(path, "going on from the one before") for path in paths)
        return next((state for state in states if state is not None), None)

    def save_trained(self, seed: int, protection: str, state: Mapping[str, Any]) -> None:
        """Keep the state of an arm that has all its epochs, whatever is done after it.

        Args:
            seed: Of the arm.
            protection: Of the arm.
            state: As for `save_checkpoint`.

        Raises:
            InputError: As `append`.
        """
        with self.writing(), writing_to(self.path):
            save_state(self._trained(seed, protection), state)

    def load_trained(self, seed: int, protection: str, *, is_finished: bool = False) -> dict[str, Any] | None:
        """The state that `save_trained` kept; None if there is none, or it is damaged, which a warning tells.

        Args:
            seed: Of the arm.
            protection: Of the arm.
            is_finished: Whether there should be one; a warning tells if there is none.
        """
        path = self._trained(seed, protection)
        if is_finished and not path.exists():
            warnings.warn(f"{path} is missing; leaving it out.", stacklevel=2)
            return None
        state = load_state(path, "leaving it out")
        if state is None:
            return None
        told = differing_options(self.header.options, state["config"])
        if told or state["arm"] != {"seed": seed, "protection": protection}:
            warnings.warn(f"{path} is the state of another search; leaving it out.", stacklevel=2)
            return None
        return state

    def _trained(self, seed: int, protection: str) -> Path:
        return self.path / f"trained-seed{seed}-{protection}.pt"


@contextlib.contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Within it a failed write is one sentence.

    Args:
        path: What is written to.

    Raises:
        InputError: In the place of an OSError.
    """
    try:
        yield
    except OSError as error:
        is_gone = error.errno == errno.ENOENT and not path.exists()
        reason = "it does not exist any more" if is_gone else error.strerror or str(error)
        raise InputError(
            f"Expected to be able to write in {path}, but got: {reason}. What was stored before is as it was."
        ) from error


def _expect_path(path: Path) -> None:
    """Refuse what no file system takes as a name: NUL, or more characters than it has room for."""
    try:
        path.lstat()
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
            return  # reading or writing says it
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"Expected the path of a folder, but got {path}: {reason}.") from error


def _recover(path: Path) -> None:
    """Undo an interrupted `--overwrite`; nothing happens to a folder where there was none."""
    if not (path / PREVIOUS).is_dir() or (path / CONFIG).exists():
        return
    lock = FolderLock(path)
    with writing_to(path):
        lock.acquire()
    try:
        with writing_to(path):
            if put_back(path):
                warnings.warn(f"{path} is again the run that an interrupted --overwrite was to replace.", stacklevel=3)
    finally:
        lock.release()


def _is_empty(path: Path) -> bool:
    """Whether a folder holds nothing but what an interrupted `create` leaves."""
    left = {*leftovers(path), path / LOCK, path / OWNER}
    return path.is_dir() and all(entry in left for entry in path.iterdir())
