"""Benchmarks that come with forgetless: every architecture of a small space, trained from scratch with several seeds.

With one of them a search is judged in seconds, offline: `forgetless evaluate RUN --truth NAME`. `forgetless benchmark
NAME` makes its file again; docs/benchmarks.md says what is in it.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forgetless.errors import InputError, expect_one_of
from forgetless.evaluation.trainings import Training, TrainingStore, run_trainings
from forgetless.parts import DataConfig, OptimizerConfig
from forgetless.progress import OnProgress, Progress
from forgetless.search import SearchConfig, load_task, make_space
from forgetless.search.config import Schedule
from forgetless.search.scratch import TrainingResult
from forgetless.spaces.nas201 import Nas201Options
from forgetless.spaces.recurrent import RecurrentOptions
from forgetless.tasks import Task
from forgetless.tasks.text import TextOptions

COLUMNS = (
    "architecture", "validation_error", "validation_error_std", "test_error", "test_error_std", "parameters", "seconds",
    "num_diverged",
)  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark's trainings are.

    Attributes:
        version: Raised whenever a number may change.
        config: Space, sizes, data and optimizer: those of the searches that it is meant to judge.
        num_batches: Of each training.
        num_seeds: Trainings of each architecture.
    """

    version: int
    config: SearchConfig
    num_batches: int
    num_seeds: int = 3


BENCHMARKS: dict[str, Benchmark] = {
    "recurrent-3": Benchmark(
        version=1,
        config=SearchConfig(
            space=RecurrentOptions(nodes=3, units=32),
            task=TextOptions(num_steps=20, vocabulary=1000),
            data=DataConfig(name="kjv"),
            optimizer=OptimizerConfig(name="adam", learning_rate=0.003, max_gradient_norm=1.0),
            schedule=Schedule(batch_size=32),
        ),
        num_batches=200,
    ),
    "nas201-digits": Benchmark(
        version=1,
        config=SearchConfig(
            space=Nas201Options(operations=("none", "skip_connect", "nor_conv_3x3"), units=2),
            data=DataConfig(name="digits"),
            optimizer=OptimizerConfig(learning_rate=0.05),
            schedule=Schedule(batch_size=32),
        ),
        num_batches=80,
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
    workers: int | None = None,
    cluster: str | None = None,
    limit: int | None = None,
    on_progress: OnProgress | None = None,
) -> str:
    """Train every architecture of a benchmark's space, but those that the store has, and write the table.

    A training that diverged counts with the error of guessing: log of the vocabulary, or 1 − 1 / classes. It did if its
    error is not finite or, as a cross entropy has no bound, above that of guessing: one such number would be the mean.

    Args:
        name: Of BENCHMARKS.
        store: Where trainings are kept, so that an interrupted call goes on.
        workers: As for `run_trainings`.
        cluster: As for `run_trainings`.
        limit: Only the first so many architectures, for a look at it; all if None.
        on_progress: Called after each training.

    Returns:
        The file: comment lines with what it is, a header, one line per architecture; means and standard deviations
        over seeds.

    Raises:
        InputError: If the name is unknown, or a training failed.
    """
    expect_one_of("benchmark", name, BENCHMARKS)
    benchmark = BENCHMARKS[name]
    task = load_task(benchmark.config)
    digest = task.digest()
    architectures = list(make_space(benchmark.config))[:limit]
    trainings = [
        Training.of(benchmark.config, digest, a, seed=seed, num_batches=benchmark.num_batches)
        for a in architectures
        for seed in range(benchmark.num_seeds)
    ]

    def on_result(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(Progress(done, total, f"benchmark {name}"))

    results, failures = run_trainings(trainings, store, workers=workers, cluster=cluster, on_result=on_result)
    if failures:
        first = failures[0]
        raise InputError(
            f"Expected every training to end, but {len(failures)} failed, first {first.job.architecture!r} with "
            f"seed {first.job.seed} ({first.reason}). Run the command again; what is done is kept."
        )
    guess, most = task.error_of_guessing, task.largest_error
    lines = [f"# {key}: {value}" for key, value in _about(name, benchmark, digest, task).items()]
    lines.append(",".join(COLUMNS))
    for number, architecture in enumerate(architectures):
        mine = results[number * benchmark.num_seeds : (number + 1) * benchmark.num_seeds]
        lines.append(f"{architecture},{_row([result for result in mine if result is not None], guess, most)}")
    return "\n".join(lines) + "\n"


def _about(name: str, benchmark: Benchmark, digest: str, task: Task[Any]) -> dict[str, Any]:
    config = benchmark.config
    return {
        "name": name,
        "version": benchmark.version,
        "command": f"forgetless benchmark {name}",
        "space": str(make_space(config)),
        "data": f"{config.data.name}, SHA-256 {digest}",
        "unit": f"{task.error_name}, {task.error_unit}",
        "training": f"{benchmark.num_batches} batches of {config.schedule.batch_size}, {benchmark.num_seeds} seeds",
    }


def _row(results: Sequence[TrainingResult], guess: float, most: float) -> str:
    def diverged(error: float) -> bool:
        return not error <= most  # nor is NaN

    cells: list[str] = []
    for measured in ([r.validation_error for r in results], [r.test_error for r in results]):
        errors = [guess if diverged(error) else error for error in measured]
        cells += [f"{statistics.fmean(errors):.5f}", f"{statistics.stdev(errors):.5f}"]
    num_diverged = sum(diverged(result.validation_error) for result in results)
    seconds = statistics.fmean(result.seconds for result in results)
    return ",".join([*cells, str(results[0].parameters), f"{seconds:.2f}", str(num_diverged)])
