"""A run folder: what was asked, on what machine, and every result as it came; enough to go on after any interruption.

| file | content |
|---|---|
| `config.toml` | the complete configuration, reusable as input |
| `environment.json` | versions, git revision, device |
| `metrics.jsonl` | one JSON object per finished unit of work; docs/metrics.md explains every key |
| `checkpoint.pt` | what a search goes on from; `checkpoint-before.pt` is the one before |
| `trained-seed0-wpl.pt` | what a search's arm had come to after its last epoch; one per finished arm |
| `interference.json`, `.png` | who overwrites whom on these, if it was measured |
| `evaluation.json` | what its architectures are worth against random ones, if that was asked |
| `enas/seed-3/` | the run folder of a search that is part of a comparison; one per strategy and seed |
| `report.html` | made from the others, never read |
| `tensorboard/` | the same, where it is asked for |
"""

import json
import os
import pickle
import shutil
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
import torch

from forgetless.errors import InputError
from forgetless.runs.environment import environment
from forgetless.runs.files import write_atomically

EXPERIMENT = "experiment"
"""The key of config.toml that says of what a run is: of one of those below."""
TWO_MODEL, SEARCH, COMPARE = "two-model", "search", "compare"
"""Experiments, by the name of their command and in config.toml."""

CONFIG = "config.toml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.pt"
CHECKPOINT_BEFORE = "checkpoint-before.pt"
REPORT = "report.html"
TENSORBOARD = "tensorboard"
INTERFERENCE = "interference.json"
EVALUATION = "evaluation.json"


def _load_state(path: Path, otherwise: str) -> dict[str, Any] | None:
    """A stored state; None if there is none, or it is damaged: a warning says so, and what is done `otherwise`."""
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except (RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(f"{path} is damaged ({reason}); {otherwise}.", stacklevel=3)
        return None
    return state


class RunFolder:
    """An existing run folder.

    Args:
        path: The folder.

    Raises:
        InputError: If it is no run folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / CONFIG).is_file():
            raise InputError(f"Expected a run folder with a {CONFIG}, but got {self.path}. Name one that a run made.")

    @classmethod
    def create(
        cls, path: str | Path, config: Mapping[str, Any], *, device: str = "cpu", overwrite: bool = False
    ) -> "RunFolder":
        """Make a run folder for a new run.

        Args:
            path: Where; parents are made.
            config: The complete configuration; None values are left out of the TOML file.
            device: The device that does the work.
            overwrite: Replace an existing run folder. Only a folder with a config.toml is ever removed.

        Returns:
            The folder, without metrics.

        Raises:
            InputError: If the path exists and is not to be overwritten, or cannot be written.
        """
        path = Path(path)
        is_run = (path / CONFIG).is_file()
        occupied = path.exists() and not (path.is_dir() and not any(path.iterdir()))
        if occupied and not overwrite:
            advice = "Resume it with `forgetless resume`, or pass --overwrite." if is_run else "Choose another."
            raise InputError(f"Expected an output folder that does not exist yet, but got {path}. {advice}")
        if occupied and not is_run:
            raise InputError(
                f"Expected to overwrite a run folder, but {path} holds no {CONFIG}. Choose another folder."
            )
        try:
            if occupied:
                shutil.rmtree(path)
            path.mkdir(parents=True, exist_ok=True)
            (path / METRICS).touch()
            write_atomically(path / ENVIRONMENT, json.dumps(environment(device), indent=2) + "\n")
            # Last, because a folder with a config is a run.
            write_atomically(path / CONFIG, tomli_w.dumps({k: v for k, v in config.items() if v is not None}))
        except OSError as error:
            raise InputError(f"Expected a folder that can be written, but got {path} ({error.strerror}).") from error
        return cls(path)

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as read from config.toml.

        Raises:
            InputError: If the file is not valid TOML.
        """
        try:
            return tomllib.loads((self.path / CONFIG).read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"Expected valid TOML in {self.path / CONFIG}, but got: {error}.") from error

    @property
    def environment(self) -> dict[str, Any]:
        """What environment.json says, or nothing where it is gone."""
        try:
            found: dict[str, Any] = json.loads((self.path / ENVIRONMENT).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return {}
        return found

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl and force it to the disk.

        Args:
            record: JSON-serialisable values.
        """
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def replace_records(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Set metrics.jsonl to other records, in one step.

        Args:
            records: JSON-serialisable values.
        """
        write_atomically(self.path / METRICS, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Store a state to go on from, and keep the one before; a crash at any moment leaves at least one of them.

        Args:
            state: Tensors, numbers, strings, lists and dicts of them.
        """
        path, temporary = self.path / CHECKPOINT, self._stored(state)
        if path.exists():
            path.replace(self.path / CHECKPOINT_BEFORE)
        temporary.replace(path)

    def save_trained(self, seed: int, protection: str, state: Mapping[str, Any]) -> None:
        """Keep the state of an arm that has all its epochs, whatever is done after it.

        Args:
            seed: Of the arm.
            protection: Of the arm.
            state: As for `save_checkpoint`.
        """
        self._stored(state).replace(self._trained(seed, protection))

    def load_trained(self, seed: int, protection: str) -> dict[str, Any] | None:
        """The state that `save_trained` kept; None if there is none, or it is damaged, which a warning tells.

        Args:
            seed: Of the arm.
            protection: Of the arm.
        """
        return _load_state(self._trained(seed, protection), "leaving it out")

    def _trained(self, seed: int, protection: str) -> Path:
        return self.path / f"trained-seed{seed}-{protection}.pt"

    def _stored(self, state: Mapping[str, Any]) -> Path:
        """A file that holds the state, safe on the disk, and is still to be renamed."""
        temporary = self.path / f".{CHECKPOINT}"
        with temporary.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        return temporary

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The newest state that can be read; None if there is none. A damaged one is passed over with a warning."""
        paths = (self.path / name for name in (CHECKPOINT, CHECKPOINT_BEFORE))
        states = (_load_state(path, "going on from the one before") for path in paths)
        return next((state for state in states if state is not None), None)

    def records(self) -> list[dict[str, Any]]:
        """What metrics.jsonl holds. A last line cut short by a crash is dropped, from the file too.

        Returns:
            One dict per line.

        Raises:
            InputError: If another line is damaged.
        """
        path = self.path / METRICS
        content = path.read_bytes() if path.exists() else b""
        whole, _, cut = content.rpartition(b"\n")
        if cut:
            write_atomically(path, whole.decode("utf-8") + "\n" if whole else "")
        records = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise InputError(
                    f"Expected one JSON object per line in {path}, but line {number} is damaged."
                ) from error
        return records
