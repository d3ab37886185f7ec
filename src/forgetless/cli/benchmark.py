"""`forgetless benchmark`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from forgetless.checkpoints import DEFAULT
from forgetless.cli.terminal import (
    AGAIN_KEPT,
    last_words,
    progress_bar,
    shown,
    tell,
    warnings_in_one_line,
    writable,
)
from forgetless.configuration import MOST_SEEDS, MOST_THREADS
from forgetless.evaluation.benchmark import make_benchmark
from forgetless.evaluation.trainings import TrainingStore, default_store
from forgetless.runs import write_atomically


def benchmark_command(
    name: str,
    /,
    *,
    output: Path | None = None,
    seeds: Annotated[int | None, Parameter(validator=Number(gte=1, lte=MOST_SEEDS))] = None,
    trainings: Path | None = None,
    workers: Annotated[int | None, Parameter(validator=Number(gte=1, lte=MOST_THREADS))] = None,
    cluster: str | None = None,
    limit: Annotated[int | None, Parameter(validator=Number(gte=1, lt=2**63))] = None,
    checkpoint_every: str = DEFAULT,
) -> None:
    """Make a shipped benchmark again: every architecture of a space, from scratch.

    Args:
        name: recurrent-3, nas201-digits or nas201-digits-hard.
        output: The file; NAME.csv by default. It is written whenever all architectures have one more seed.
        seeds: Trainings of each architecture; as many as the benchmark has by default.
        trainings: Folder of trainings, from which an interrupted call goes on; FORGETLESS_TRAININGS or runs/trainings
            by default.
        workers: Processes, or tasks at a time on a cluster; one per core by default.
        cluster: The address of a Ray cluster, or `local` to start one here; processes by default.
        limit: Only the first so many architectures.
        checkpoint_every: How much work of a training a kill may cost, such as 10min, 90s or 2h.
    """
    path = output or Path(f"{name}.csv")

    def write(text: str) -> None:
        with writable(path):
            write_atomically(path, text)

    with last_words(AGAIN_KEPT), progress_bar() as show, warnings_in_one_line():
        store = TrainingStore(trainings or default_store(), checkpoint_every)
        text = make_benchmark(
            name,
            store,
            seeds=seeds,
            workers=workers,
            cluster=cluster,
            limit=limit,
            on_seed=write,
            on_progress=shown(show),
        )
    write(text)
    tell(f"Benchmark: {path}")
