"""Trainings from scratch that are kept: each is made once, wherever and however often it is asked for.

A training's key is the SHA-256 of everything that decides its result; its result is one small file under that name. So
an interrupted evaluation goes on where it was, and two evaluations that share a training share the work.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgetless.checkpoints import DEFAULT, Checkpoints, seconds_of
from forgetless.errors import InputError
from forgetless.runs import environment, read_sealed, write_sealed, writing_to
from forgetless.runs.states import load_state, save_state
from forgetless.search import SearchConfig, load_task, make_space
from forgetless.search.scratch import train_from_scratch
from forgetless.tasks import Task
from forgetless.training import cpu_arithmetic

VERSION = 1
"""Of the procedure; a change that changes results raises it."""

_DECIDING = (
    "space", "nodes", "units", "cells_per_stage", "operations", "data", "optimizer", "learning_rate", "momentum",
    "max_gradient_norm", "batch_size", "num_steps", "vocabulary", "independent", "augment", "dropout", "weight_drop",
    "device",
)  # fmt: skip


@dataclass(frozen=True)
class Training:
    """Everything that decides the result of one training from scratch.

    Attributes:
        options: Those options of a search that a training depends on, as (name, value), in a fixed order.
        data_sha256: Of the data itself.
        architecture: As its space prints it.
        seed: Of weights and batches.
        num_batches: How long it trains.
        whole_text: Whether the test error of text is over the whole file as one stream.
        data_dir: Where the data lies; it decides nothing.
        kept_in: Folder for what it has come to when it is interrupted; it decides nothing.
        checkpoint_seconds: How much work a kill may cost; it decides nothing.
    """

    options: tuple[tuple[str, Any], ...]
    data_sha256: str
    architecture: str
    seed: int
    num_batches: int
    whole_text: bool
    data_dir: str | None = dataclasses.field(default=None, compare=False)
    kept_in: str | None = dataclasses.field(default=None, compare=False)
    checkpoint_seconds: float = dataclasses.field(default=math.inf, compare=False)

    @classmethod
    def of(
        cls, config: SearchConfig, data_sha256: str, architecture: Any, *, seed: int, num_batches: int, whole_text: bool
    ) -> "Training":
        """The training of an architecture in the way of a search.

        Args:
            config: Of the search.
            data_sha256: As `Task.digest` gives it.
            architecture: A member of its space.
            seed: Of weights and batches.
            num_batches: How long to train.
            whole_text: See `train_from_scratch`.
        """
        options = {name: getattr(config, name) for name in _DECIDING if hasattr(config, name)}
        return cls(
            tuple(sorted(options.items())),
            data_sha256,
            str(architecture),
            seed,
            num_batches,
            whole_text,
            config.data_dir,
        )

    @property
    def config(self) -> SearchConfig:
        """A search's configuration with these options."""
        return SearchConfig(**dict(self.options), data_dir=self.data_dir)

    def as_dict(self) -> dict[str, Any]:
        """What the key is made of, JSON-serialisable."""
        values = dataclasses.asdict(self)
        for name in ("data_dir", "kept_in", "checkpoint_seconds"):
            del values[name]
        return {**values, "options": dict(self.options), "version": VERSION}

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON of `as_dict`."""
        text = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def run_training(training: Training) -> dict[str, Any]:
    """Make one training, with one thread of the CPU, so that its result does not depend on who makes it.

    Args:
        training: What to do.

    Returns:
        As `train_from_scratch`.

    Raises:
        InputError: If the data is missing, or another than the training was asked for.
    """
    config = training.config
    task, digest = _task(config)
    if digest != training.data_sha256:
        raise InputError(
            f"Expected data with the SHA-256 {training.data_sha256[:12]}…, but got {digest[:12]}… from {config.data}. "
            "Evaluate on the data of the search."
        )
    architecture = make_space(config).parse(training.architecture)
    # On another machine of a cluster the folder may not be there.
    begun = None if training.kept_in is None else Path(training.kept_in, f"{training.key}.pt")
    is_kept = begun is not None and begun.parent.is_dir()

    def save(state: Mapping[str, Any]) -> None:
        if begun is not None and is_kept:
            with writing_to(begun.parent):
                save_state(begun, state)

    state = load_state(begun, "beginning this training again") if begun is not None and is_kept else None
    checkpoints = Checkpoints(save, training.checkpoint_seconds)
    with cpu_arithmetic(1, flush_denormals=True):
        return train_from_scratch(
            config,
            task,
            architecture,
            seed=training.seed,
            num_batches=training.num_batches,
            whole_text=training.whole_text,
            state=state,
            on_step=checkpoints.point,
        )


@functools.lru_cache(maxsize=1)
def _task(config: SearchConfig) -> tuple[Task[Any], str]:
    """Data is loaded once per process, not once per training."""
    task = load_task(config)
    return task, task.digest()


class TrainingStore:
    """A folder of results, one file per training.

    Args:
        folder: Made if it is not there.
        checkpoint_every: How much work of a training a kill may cost, such as 10min.

    Raises:
        InputError: If it cannot be made.
    """

    def __init__(self, folder: str | Path, checkpoint_every: str = DEFAULT) -> None:
        self.folder = Path(folder)
        self._seconds = seconds_of(checkpoint_every)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"Expected a folder for trainings, but got {folder} ({error.strerror}).") from error

    def _path(self, training: Training) -> Path:
        return self.folder / f"{training.key}.json"

    def load(self, training: Training) -> dict[str, Any] | None:
        """The result of a training; None if it was never made, or its file is damaged, which a warning tells.

        Args:
            training: Which.
        """
        path = self._path(training)
        try:
            stored = read_sealed(path, training.key)
            if stored["training"] == json.loads(json.dumps(training.as_dict())):
                return dict(stored["result"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, OSError):
            pass
        warnings.warn(f"{path} is damaged; training {training.architecture} again.", stacklevel=2)
        return None

    def to_make(self, training: Training) -> Training:
        """The same training, which keeps here what it has come to when it is interrupted.

        Args:
            training: Which.
        """
        return dataclasses.replace(training, kept_in=str(self.folder), checkpoint_seconds=self._seconds)

    def save(self, training: Training, result: Mapping[str, Any]) -> None:
        """Keep a result; a crash at any moment leaves the old file or the new one.

        Args:
            training: Which.
            result: Of `run_training`.
        """
        stored = {"training": training.as_dict(), "result": dict(result), "environment": environment()}
        with writing_to(self.folder):
            write_sealed(self._path(training), stored, training.key)
            self._path(training).with_suffix(".pt").unlink(missing_ok=True)


def default_store() -> Path:
    """Where trainings are kept if nothing else is said: FORGETLESS_TRAININGS, or runs/trainings."""
    return Path(os.environ.get("FORGETLESS_TRAININGS", "runs/trainings"))
