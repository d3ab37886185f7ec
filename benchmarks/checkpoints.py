"""What checkpoints by time cost, as a share of the run: `python benchmarks/checkpoints.py [--json OUTPUT.json]`.

Each run is made with a checkpoint at every second, the last at every half a minute. Timed are the calls at points
where one may be stored (without storing), which are made whatever the interval, and each checkpoint. At the default
interval of ten minutes they take at most

    time in calls / time of the run without checkpoints  +  time of the longest checkpoint / 10 min

of a run. The last run is a search of the paper's size on text, whose checkpoint is the largest.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import timing
from rich.console import Console
from rich.table import Table

from forgetless import runs
from forgetless.checkpoints import DEFAULT, Checkpoints, seconds_of
from forgetless.experiments.base import RUN_KINDS

RECURRENT = {"name": "recurrent", "nodes": 8, "units": 100}
PTB = {"space": RECURRENT, "data": {"name": "ptb"}, "task": {"name": "text", "num_steps": 20}}
NONE, WPL = [{"name": "none"}], [{"name": "wpl"}]
MNIST = {"data": {"name": "mnist"}, "run": {"seeds": 2}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "two-model, MNIST, unprotected": ("two-model", MNIST | {"protections": NONE}),
    "two-model, MNIST, weight plasticity": ("two-model", MNIST | {"protections": WPL}),
    "search, NAS-Bench-201 cells on digits": (
        "search",
        {"space": {"name": "nas201"}, "data": {"name": "digits"}, "schedule": {"epochs": 20}},
    ),
    "search, Penn Treebank, 100 units": (
        "search",
        PTB | {"schedule": {"epochs": 3, "batch_size": 32}, "protections": WPL},
    ),
    "search, Penn Treebank, 12 nodes, 850 units": (
        "search",
        PTB
        | {"space": RECURRENT | {"nodes": 12, "units": 850}, "protections": WPL, "selection": {"final_samples": 0}}
        | {
            "schedule": {"epochs": 1, "models_per_epoch": 3, "batch_size": 32},
            "resources": {"checkpoint_every": "30s"},
        },
    ),
}


def measured(experiment: str, options: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one run, in calls and in checkpoints, and the size of the largest checkpoint."""
    calls: list[float] = []
    stores: list[float] = []
    sizes: list[int] = []
    point, save = Checkpoints.point, runs.RunFolder.save_checkpoint

    def timed_point(self: Checkpoints, *arguments: Any, **words: Any) -> None:
        num_stores, start = len(stores), time.perf_counter()
        point(self, *arguments, **words)
        seconds = time.perf_counter() - start
        if len(stores) == num_stores:
            calls.append(seconds)
        else:
            stores[-1] = seconds  # with the time to make the state

    def timed_save(self: runs.RunFolder, state: Any) -> None:
        start = time.perf_counter()
        save(self, state)
        stores.append(time.perf_counter() - start)
        sizes.append(max(path.stat().st_size for path in self.path.glob("*.pt")))

    with (
        tempfile.TemporaryDirectory() as place,
        mock.patch.object(Checkpoints, "point", timed_point),
        mock.patch.object(runs.RunFolder, "save_checkpoint", timed_save),
    ):
        start = time.perf_counter()
        kind = RUN_KINDS[experiment]
        config = kind.Config.from_dict({"resources": {"checkpoint_every": "1s"}, **options})
        kind.make(config, kind.create(Path(place, "run"), config))
        seconds = time.perf_counter() - start - sum(stores)
    return {
        "seconds": seconds,
        "calls": len(calls),
        "seconds_in_calls": sum(calls),
        "checkpoints": len(stores),
        "seconds_per_checkpoint": statistics.median(stores),
        "longest_checkpoint": max(stores),
        "megabytes": max(sizes) / 1e6,
        "share": sum(calls) / seconds + max(stores) / seconds_of(DEFAULT),
    }


def main() -> None:
    """Measure, print and write."""
    command = timing.parser(__doc__, rounds=1)
    command.add_argument("--only", help="the run of this name")
    options = command.parse_args()
    timing.prepare(options.threads)
    found = {name: measured(*case) for name, case in CASES.items() if options.only in (None, name)}
    table = Table(title=f"checkpoints, and what they cost at --checkpoint-every {DEFAULT}", title_justify="left")
    for column in ("", "s", "calls, s", "longest checkpoint, s", "MB", "share, %"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in found.items():
        numbers = (row["seconds"], row["seconds_in_calls"], row["longest_checkpoint"], row["megabytes"])
        table.add_row(name, *(f"{number:.3g}" for number in numbers), f"{100 * row['share']:.3f}")
    Console().print(table)
    if options.json is not None:
        result = {
            "benchmark": "checkpoints",
            "command": f"python benchmarks/checkpoints.py --threads {options.threads}",
            "environment": timing.environment(),
            "interval": DEFAULT,
            "runs": found,
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
