"""Whether trainings from scratch give the same numbers in one process and fanned out, and what fanning out costs.

    python benchmarks/fan_out.py --json fan_out.json

The same trainings of the shipped benchmark's space are made in this process, in two local processes, and by two workers
of a Ray that is started here. Every number but the seconds has to be equal, to the last bit. The times are of one call
each, the start of processes or of Ray included.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import timing
import torch
from rich.console import Console
from rich.table import Table

from forgetless.cluster import LOCAL
from forgetless.evaluation.benchmark import BENCHMARKS
from forgetless.evaluation.trainings import Training, TrainingStore, run_trainings
from forgetless.search import load_task, make_space

WAYS: dict[str, dict[str, Any]] = {
    "one process": {"workers": 1},
    "two processes": {"workers": 2},
    "Ray, two workers": {"workers": 2, "cluster": LOCAL},
}


def main() -> None:
    """Train, compare and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", type=int, default=64, help="(default %(default)s)")
    parser.add_argument("--batches", type=int, default=80, help="of each (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    timing.prepare(1)
    config = BENCHMARKS["nas201-digits"].config
    digest, space = load_task(config).digest(), make_space(config)
    generator = torch.Generator().manual_seed(0)
    trainings = [
        Training.of(config, digest, space.sample(generator), seed=n, num_batches=options.batches)
        for n in range(options.trainings)
    ]
    found, seconds = {}, {}
    for name, way in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            results, failures = run_trainings(trainings, TrainingStore(folder), **way)
            seconds[name] = time.perf_counter() - start
        assert not failures, failures
        found[name] = [dataclasses.replace(result, seconds=0.0) for result in results if result is not None]
    first = next(iter(found.values()))
    same = {name: sum(a == b for a, b in zip(results, first, strict=True)) for name, results in found.items()}
    table = Table(title=f"{len(trainings)} trainings of {options.batches} batches", title_justify="left")
    for column in ("", "same numbers", "s"):
        table.add_column(column)
    for name in WAYS:
        table.add_row(name, f"{same[name]} of {len(trainings)}", f"{seconds[name]:.1f}")
    Console().print(table)
    if options.json is not None:
        measured = {
            "benchmark": "fan_out",
            "command": f"python benchmarks/fan_out.py --trainings {options.trainings} --batches {options.batches}",
            "environment": timing.environment(),
            "trainings": len(trainings),
            "ways": {name: {"same": same[name], "seconds": seconds[name]} for name in WAYS},
        }
        options.json.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
