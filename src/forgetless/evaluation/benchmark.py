"""Benchmarks that come with forgetless: every architecture of a small space, trained from scratch with several seeds.

With one of them a search is judged in seconds, offline: `forgetless evaluate RUN --truth NAME`. `forgetless benchmark
NAME` makes its file again; docs/benchmarks.md says what is in it.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from forgetless.errors import InputError, expect_one_of
from forgetless.evaluation.trainings import Training, TrainingStore, run_trainings
from forgetless.parts import DataConfig, OptimizerConfig
from forgetless.progress import OnProgress, Progress
from forgetless.search import SearchConfig, load_task, make_space
from forgetless.search.config import Schedule
from forgetless.search.rates import RateConfig
from forgetless.search.scratch import TrainingResult
from forgetless.spaces import Space
from forgetless.spaces.nas201 import Nas201Options
from forgetless.spaces.recurrent import RecurrentOptions
from forgetless.tasks import Task
from forgetless.tasks.text import TextOptions


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark's trainings are.

    Attributes:
        version: Raised whenever a number may change.
        config: Space, sizes, data and optimizer: those of the searches that it is meant to judge.
        num_batches: Of each training.
        num_seeds: Trainings of each architecture.
        rates: How the learning rate changes over a training; constant if None.
        reset_state_every: See `train_from_scratch`.
    """

    version: int
    config: SearchConfig
    num_batches: int
    num_seeds: int = 3
    rates: RateConfig | None = None
    reset_state_every: int | None = None

    def training(self, data_sha256: str, architecture: Any, seed: int) -> Training:
        """One of its trainings.

        Args:
            data_sha256: As `Task.digest` gives it.
            architecture: A member of its space.
            seed: Of weights and batches.
        """
        return Training.of(
            self.config,
            data_sha256,
            architecture,
            seed=seed,
            num_batches=self.num_batches,
            rates=self.rates,
            reset_state_every=self.reset_state_every,
        )


BENCHMARKS: dict[str, Benchmark] = {
    "recurrent-3": Benchmark(
        version=2,
        config=SearchConfig(
            space=RecurrentOptions(nodes=3, units=32),
            task=TextOptions(num_steps=20, vocabulary=1000),
            data=DataConfig(name="kjv"),
            optimizer=OptimizerConfig(name="adam", learning_rate=0.003, max_gradient_norm=1.0),
            schedule=Schedule(batch_size=32),
        ),
        num_batches=200,
        num_seeds=5,
        reset_state_every=7,
    ),
    "nas201-digits": Benchmark(
        version=2,  # a function is trained once, not in each notation
        config=SearchConfig(
            space=Nas201Options(operations=("none", "skip_connect", "nor_conv_3x3"), units=2),
            data=DataConfig(name="digits"),
            optimizer=OptimizerConfig(learning_rate=0.05),
            schedule=Schedule(batch_size=32),
        ),
        num_batches=80,
    ),
    "nas201-digits-hard": Benchmark(
        version=1,
        config=SearchConfig(
            space=Nas201Options(operations=("none", "skip_connect", "nor_conv_3x3"), units=4),
            data=DataConfig(name="digits-hard"),
            optimizer=OptimizerConfig(learning_rate=0.1),
            schedule=Schedule(batch_size=32),
        ),
        num_batches=1000,
        num_seeds=5,
        rates=RateConfig(schedule="linear"),
    ),
}
"""The benchmarks that come with forgetless, by name."""


def task_difference(name: str, search: SearchConfig) -> str:
    """How the task that a search learnt differs from a benchmark's, by which its architectures are judged.

    Args:
        name: Of a benchmark, or any other truth, of which nothing is known.
        search: The search.

    Returns:
        A sentence; empty if there is no difference.

    >>> from forgetless.search import SearchConfig
    >>> task_difference("recurrent-3", SearchConfig(space=RecurrentOptions(nodes=3)))
    'The search had vocabulary unlimited; recurrent-3 has 1000: ranked on one task, judged by another.'
    """
    if name not in BENCHMARKS or not search.trains_shared_weights:
        return ""
    had, has = map(_learnt, (search, BENCHMARKS[name].config))
    different = [option for option in {**had, **has} if had.get(option) != has.get(option)]
    if not different:
        return ""
    ours = ", ".join(f"{option.replace('_', ' ')} {had.get(option, 'unlimited')}" for option in different)
    theirs = ", ".join(str(has.get(option, "unlimited")) for option in different)
    return f"The search had {ours}; {name} has {theirs}: ranked on one task, judged by another."


def _learnt(config: SearchConfig) -> dict[str, Any]:
    """What is learnt, by which network; which architectures there are is for the truth to check."""
    found = {"data": config.data.name, **config.task.to_dict(), **config.space.to_dict()}
    return {option: value for option, value in found.items() if option not in {"name", "operations"}}


def make_benchmark(
    name: str,
    store: TrainingStore,
    *,
    seeds: int | None = None,
    workers: int | None = None,
    cluster: str | None = None,
    limit: int | None = None,
    on_seed: Callable[[str], None] | None = None,
    on_progress: OnProgress | None = None,
) -> str:
    """Train every architecture of a benchmark's space, but those that the store has, and write the table.

    Of architectures that are the same function the first is trained, and its numbers are those of all of them. All are
    trained with seed 0 before any is with seed 1, so that after each whole seed there is a table of all architectures.

    The table has a column for each quality and seed, with what that training came to, so that a reader can take the
    mean, the median, the share that diverged, and what one half of the seeds says of the other. A training that
    diverged, whose error is not finite or, as a cross entropy has no bound, above that of guessing, is `inf`: the
    largest error, which leaves a median as it is as long as most trainings ended well, and which no measured error is
    mistaken for. The comment `guessing` has the error of guessing, log of the vocabulary or 1 − 1 / classes, for
    readers that want a mean.

    Args:
        name: Of BENCHMARKS.
        store: Where trainings are kept, so that an interrupted call goes on.
        seeds: How many, from 0; as many as the benchmark has if None.
        workers: As for `run_trainings`.
        cluster: As for `run_trainings`.
        limit: Only the first so many architectures, for a look at it; all if None.
        on_seed: Called with the table so far whenever all architectures have been trained with one more seed.
        on_progress: Called after each training, with the time left at the present speed.

    Returns:
        The file: comment lines with what it is, a header, one line per architecture.

    Raises:
        InputError: If the name is unknown, or a training failed.
    """
    expect_one_of("benchmark", name, BENCHMARKS)
    benchmark = BENCHMARKS[name]
    task = load_task(benchmark.config)
    digest = task.digest()
    num_seeds = benchmark.num_seeds if seeds is None else seeds
    functions = _Functions.of(make_space(benchmark.config), limit)
    clock = _Clock(f"benchmark {name}", num_seeds * len(functions.trained), on_progress)
    columns: list[Sequence[TrainingResult]] = []
    text = ""
    for seed in range(num_seeds):
        made_before = clock.made
        trainings = [benchmark.training(digest, architecture, seed) for architecture in functions.trained]
        results, failures = run_trainings(
            trainings, store, workers=workers, cluster=cluster, on_result=clock.of_seed(seed * len(trainings))
        )
        if failures:
            first = failures[0]
            raise InputError(
                f"Expected every training to end, but {len(failures)} failed, first {first.job.architecture!r} with "
                f"seed {first.job.seed} ({first.reason}). Run the command again; what is done is kept."
            )
        columns.append([result for result in results if result is not None])
        about = _about(name, benchmark, digest, task, seed + 1)
        text = _table(about, functions, columns, task)
        if on_seed is not None and clock.made > made_before:
            on_seed(text)
    return text


@dataclass(frozen=True)
class _Functions:
    """Architectures, and which of them are the same function.

    Attributes:
        architectures: All.
        groups: The number of each one's function.
        trained: The first architecture of each function.
    """

    architectures: list[Any]
    groups: list[int]
    trained: list[Any]

    @classmethod
    def of(cls, space: Space[Any], limit: int | None) -> "_Functions":
        """The first so many of a space, by its canonical forms if it has them."""
        form = space.canonical_form if space.has_canonical_form else str
        numbers: dict[str, int] = {}
        first: dict[int, Any] = {}
        architectures, groups = [], []
        for architecture in itertools.islice(space, limit):
            group = numbers.setdefault(form(architecture), len(numbers))
            first.setdefault(group, architecture)
            architectures.append(architecture)
            groups.append(group)
        return cls(architectures, groups, list(first.values()))


class _Clock:
    """Tells how far the trainings of all seeds are, and how long they take yet."""

    def __init__(self, label: str, total: int, on_progress: OnProgress | None) -> None:
        self.made = 0
        self._label, self._total, self._on_progress = label, total, on_progress
        self._started = time.monotonic()

    def of_seed(self, before: int) -> Callable[[int, int], None]:
        """For `run_trainings` of one seed, after so many of earlier seeds."""
        is_first = True

        def on_result(done: int, _: int) -> None:
            nonlocal is_first
            self.made += not is_first  # the first call tells what was in the store
            is_first = False
            if self._on_progress is not None:
                left = self._total - before - done
                seconds = (time.monotonic() - self._started) / self.made * left if self.made else None
                self._on_progress(Progress(before + done, self._total, self._label, seconds_left=seconds))

        return on_result


def _about(name: str, benchmark: Benchmark, digest: str, task: Task[Any], num_seeds: int) -> dict[str, Any]:
    config = benchmark.config
    optimizer = config.optimizer
    falling = "" if benchmark.rates is None else benchmark.rates.in_words
    how = f"{optimizer.name} {optimizer.learning_rate:g}{falling}"
    if benchmark.reset_state_every is not None:
        how += f", from a zero state every {benchmark.reset_state_every} batches"
    seeds = "" if num_seeds == benchmark.num_seeds else f" --seeds {num_seeds}"
    return {
        "name": name,
        "version": benchmark.version,
        "command": f"forgetless benchmark {name}{seeds}",
        "space": str(make_space(config)),
        "data": f"{config.data.name}, SHA-256 {digest}",
        "unit": f"{task.error_name}, {task.error_unit}",
        "training": f"{benchmark.num_batches} batches of {config.schedule.batch_size}, {how}, {num_seeds} seeds",
        "guessing": f"{task.error_of_guessing:.5f}",
    }


def _table(
    about: dict[str, Any], functions: _Functions, columns: Sequence[Sequence[TrainingResult]], task: Task[Any]
) -> str:
    """The file, of the results of each seed: one per function."""
    lines = [f"# {key}: {value}" for key, value in about.items()]
    qualities = ("validation_error", "test_error")
    seeds = [f"{quality}_seed{seed}" for quality in qualities for seed in range(len(columns))]
    lines.append(",".join(["architecture", *seeds, "parameters", "seconds", "iso_group"]))
    of_function = []
    for results in zip(*columns, strict=True):
        errors = [getattr(result, quality) for quality in qualities for result in results]
        cells = [f"{error:.5f}" if error <= task.largest_error else "inf" for error in errors]  # nor is NaN
        seconds = statistics.fmean(result.seconds for result in results)
        of_function.append(",".join([*cells, str(results[0].parameters), f"{seconds:.2f}"]))
    rows = zip(functions.architectures, functions.groups, strict=True)
    lines += [f"{architecture},{of_function[group]},{group}" for architecture, group in rows]
    return "\n".join(lines) + "\n"
