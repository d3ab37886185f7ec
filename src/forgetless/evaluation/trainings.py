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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgetless import ranks
from forgetless.checkpoints import DEFAULT, Checkpoints, no_checkpoints, seconds_of
from forgetless.configuration import Part
from forgetless.errors import InputError
from forgetless.parts import DataConfig, OptimizerConfig, Resources
from forgetless.runs import environment, read_sealed, write_sealed, writing_to
from forgetless.runs.states import load_state, save_state
from forgetless.search import SearchConfig
from forgetless.search.rates import RateConfig
from forgetless.search.scratch import TrainingResult, train_from_scratch
from forgetless.spaces import SpaceOptions
from forgetless.tasks import TASKS, Task, TaskOptions
from forgetless.training import cpu_arithmetic
from forgetless.workers import Failure, fan_out

VERSION = 2
"""Of the procedure; a change that changes results raises it."""


@dataclass(frozen=True, kw_only=True)
class TrainingSpec(Part):
    """Everything that decides the result of one training from scratch; its key is the hash of all of it.

    Attributes:
        space: The space with its supernet.
        task: Options of the task.
        data: What is learnt.
        optimizer: How.
        batch_size: Sequences or images per batch.
        device: Where.
        data_sha256: Of the data itself.
        architecture: As its space prints it.
        seed: Of weights and batches.
        num_batches: How long it trains.
        as_published: Whether the test error is measured as it is published; see `train_from_scratch`.
        rates: How the learning rate changes; constant if None, which keeps the keys from before there was a choice.
        reset_state_every: See `train_from_scratch`; None keeps the keys, too.
    """

    space: SpaceOptions
    task: TaskOptions
    data: DataConfig
    optimizer: OptimizerConfig
    batch_size: int
    device: str
    data_sha256: str
    architecture: str
    seed: int
    num_batches: int
    as_published: bool = False
    rates: RateConfig | None = None
    reset_state_every: int | None = None

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON of all of it, and of the version."""
        text = json.dumps({**self.to_dict(), "version": VERSION}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Training:
    """A training from scratch that is wanted.

    Attributes:
        spec: What decides its result.
        resources: Where its data lies, and plugins; they decide nothing.
        kept_in: Folder for what it has come to when it is interrupted; it decides nothing.
        checkpoint_seconds: How much work a kill may cost; it decides nothing.
    """

    spec: TrainingSpec
    resources: Resources = dataclasses.field(default=Resources(), compare=False)
    kept_in: str | None = dataclasses.field(default=None, compare=False)
    checkpoint_seconds: float = dataclasses.field(default=math.inf, compare=False)

    @classmethod
    def of(
        cls,
        config: SearchConfig,
        data_sha256: str,
        architecture: Any,
        *,
        seed: int,
        num_batches: int,
        as_published: bool = False,
        rates: RateConfig | None = None,
        reset_state_every: int | None = None,
    ) -> "Training":
        """The training of an architecture in the way of a search.

        Args:
            config: Of the search.
            data_sha256: As `Task.digest` gives it.
            architecture: A member of its space.
            seed: Of weights and batches.
            num_batches: How long to train.
            as_published: See `train_from_scratch`.
            rates: How the learning rate changes; constant if None, whatever it does in the search.
            reset_state_every: See `train_from_scratch`.
        """
        spec = TrainingSpec(
            space=config.space,
            task=config.task,
            data=config.data,
            optimizer=config.optimizer,
            batch_size=config.schedule.batch_size,
            device=config.run.device,
            data_sha256=data_sha256,
            architecture=str(architecture),
            seed=seed,
            num_batches=num_batches,
            as_published=as_published,
            rates=rates,
            reset_state_every=reset_state_every,
        )
        return cls(spec, config.resources)

    @property
    def key(self) -> str:
        """Of its spec."""
        return self.spec.key

    @property
    def architecture(self) -> str:
        """As its space prints it."""
        return self.spec.architecture

    @property
    def seed(self) -> int:
        """Of weights and batches."""
        return self.spec.seed


def run_training(training: Training) -> TrainingResult:
    """Make one training, with one thread of the CPU, so that its result does not depend on who makes it.

    Args:
        training: What to do.

    Returns:
        What it came to.

    Raises:
        InputError: If the data is missing, or another than the training was asked for.
    """
    # On another machine of a cluster the folder may not be there.
    begun = None if training.kept_in is None else Path(training.kept_in, f"{training.key}.pt")
    is_kept = begun is not None and begun.parent.is_dir()

    def save(state: Mapping[str, Any]) -> None:
        if begun is not None and is_kept:
            with writing_to(begun.parent):
                save_state(begun, state)

    state = load_state(begun, "beginning this training again") if begun is not None and is_kept else None
    with ranks.together(_run_from, training, state):
        return _run_from(training, state, Checkpoints(save, training.checkpoint_seconds))


def _run_from(
    training: Training, state: Mapping[str, Any] | None, checkpoints: Checkpoints | None = None
) -> TrainingResult:
    """Make one training from a state; where several processes make it, the others store nothing."""
    spec = training.spec
    task, digest = _task(spec.space, spec.task, spec.data, spec.batch_size, spec.device, training.resources.data_dir)
    if digest != spec.data_sha256:
        raise InputError(
            f"Expected data with the SHA-256 {spec.data_sha256[:12]}…, but got {digest[:12]}… from {spec.data.name}. "
            "Evaluate on the data of the search."
        )
    space = spec.space.kind(spec.space)
    with cpu_arithmetic(1, flush_denormals=True):
        return train_from_scratch(
            task,
            space,
            space.space.parse(spec.architecture),
            spec.optimizer,
            device=spec.device,
            seed=spec.seed,
            num_batches=spec.num_batches,
            rates=spec.rates,
            reset_state_every=spec.reset_state_every,
            as_published=spec.as_published,
            state=state,
            on_step=(checkpoints or no_checkpoints()).point,
        )


@functools.lru_cache(maxsize=1)
def _task(
    space: SpaceOptions, options: TaskOptions, data: DataConfig, batch_size: int, device: str, data_dir: str | None
) -> tuple[Task[Any], str]:
    """Data is loaded once per process, not once per training."""
    task = TASKS[space.kind.task].load(data.name, data_dir, options, batch_size=batch_size, device=device)
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

    def load(self, training: Training) -> TrainingResult | None:
        """The result of a training; None if it was never made, or its file is damaged, which a warning tells.

        Args:
            training: Which.
        """
        path = self._path(training)
        try:
            stored = read_sealed(path, training.key)
            if stored["training"] == json.loads(json.dumps(training.spec.to_dict())):
                return TrainingResult.from_dict(stored["result"], "the result of a training", str(path))
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

    def save(self, training: Training, result: TrainingResult) -> None:
        """Keep a result; a crash at any moment leaves the old file or the new one.

        Args:
            training: Which.
            result: Of `run_training`.
        """
        stored = {"training": training.spec.to_dict(), "result": result.to_dict(), "environment": environment()}
        with writing_to(self.folder):
            write_sealed(self._path(training), stored, training.key)
            self._path(training).with_suffix(".pt").unlink(missing_ok=True)


def default_store() -> Path:
    """Where trainings are kept if nothing else is said: FORGETLESS_TRAININGS, or runs/trainings."""
    return Path(os.environ.get("FORGETLESS_TRAININGS", "runs/trainings"))


def run_trainings(
    trainings: Sequence[Training],
    store: TrainingStore,
    *,
    workers: int | None = None,
    cluster: str | None = None,
    retries: int = 1,
    runner: Callable[[Training], TrainingResult] = run_training,
    on_result: Callable[[int, int], None] | None = None,
) -> tuple[list[TrainingResult | None], list[Failure[Training]]]:
    """Make those of some trainings that the store does not have, and store each as soon as it is done.

    Args:
        trainings: What is wanted; a training may be asked for several times and is made once.
        store: What is there already, and where results go.
        workers: Processes, or tasks at a time on a cluster; as many as there are cores if None. One runs in this
            process.
        cluster: The address of a Ray cluster, `local` to start one here, or None for processes.
        retries: How often a failed training is made again.
        runner: Makes one training; it must be importable in another process.
        on_result: Called with how many are done, and of how many.

    Returns:
        One result per training, in their order, None where it failed; and the failures.

    Raises:
        InputError: If the cluster does not answer within 10 s, or Ray is not installed.
    """
    distinct = {training.key: training for training in trainings}
    results = {key: found for key, training in distinct.items() if (found := store.load(training)) is not None}
    missing = [store.to_make(training) for key, training in distinct.items() if key not in results]

    def done(training: Training, result: TrainingResult) -> None:
        store.save(training, result)
        results[training.key] = result
        if on_result is not None:
            on_result(len(results), len(distinct))

    if on_result is not None:
        on_result(len(results), len(distinct))
    if ranks.num_processes() > 1:
        _expect_no_workers(workers, cluster)
        for training in missing:  # what fails in one process ends all, as the others wait for it
            done(training, runner(training))
        return [results.get(training.key) for training in trainings], []
    device = next((training.spec.device for training in missing if training.spec.device != "cpu"), "cpu")
    failures = fan_out(missing, runner, done, workers=workers, cluster=cluster, device=device, retries=retries)
    return [results.get(training.key) for training in trainings], failures


def _expect_no_workers(workers: int | None, cluster: str | None) -> None:
    if cluster is not None or (workers or 1) > 1:
        raise InputError(
            f"Expected either the {ranks.num_processes()} processes of torchrun, which make one training together, or "
            "--workers and --cluster, which make several at a time, but got both. Leave out one of them."
        )
