"""Time and memory of `forgetless report` on runs with very many records: `python benchmarks/report.py [OUTPUT.json]`.

Records are those of a committed search, or made-up ones of a two-model run, repeated under other seeds and epochs.
Each size is read, judged and drawn in a process of its own; imports are not counted.
"""

import dataclasses
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timing

from forgetless.experiments.two_model import TwoModelConfig, arms
from forgetless.report import write_report
from forgetless.runs import RunFolder
from forgetless.search import SearchConfig

HERE = Path(__file__).parents[1] / "results"
SEARCHES = {  # name: seeds, epochs, of 5 protections
    "search, 2,500 records": (5, 100),
    "search, 10,000 records": (10, 200),
    "search, 100,000 records of few seeds": (10, 2000),
    "search, 100,000 records of many seeds": (250, 80),
}
TWO_MODEL_SEEDS = {"two-model, 2,500 records": 500, "two-model, 10,000 records": 2_000}
PROTECTIONS = ("none", "matched-lr", "freeze", "l2", "wpl")


def search(path: Path, seeds: int, epochs: int) -> RunFolder:
    """A search whose epochs are those of a committed one, over and over."""
    committed = RunFolder(HERE / "search" / "nas201-digits")
    known = [record for record in committed.records() if record["event"] == "epoch"]
    ends = [record for record in committed.records() if record["event"] == "derived"]
    options = dict(committed.header.options)
    options |= {"protections": [{"name": name} for name in PROTECTIONS]}
    options |= {
        name: options[name] | change for name, change in (("run", {"seeds": seeds}), ("schedule", {"epochs": epochs}))
    }
    config = SearchConfig.from_dict(options)
    records = []
    for seed in range(seeds):
        for protection in ("none", "freeze", "l2", "wpl", "matched-lr"):
            arm = {"seed": seed, "protection": protection}
            mine = [r for r in known if r["protection"] == protection] or known
            records += [mine[(seed + epoch) % len(mine)] | arm | {"epoch": epoch} for epoch in range(epochs)]
            records.append(ends[seed % len(ends)] | arm)
    folder = RunFolder.create(path, {"experiment": "search", **config.to_dict()})
    folder.replace_records(records)
    return folder


def two_model(path: Path, seeds: int) -> RunFolder:
    """A two-model run whose records are those of a committed one, over and over."""
    committed = RunFolder(HERE / "two-model" / "mnist-crossed-adam")
    known: dict[str, list[dict[str, Any]]] = {}
    for record in committed.records():
        known.setdefault(record["protection"], []).append(record)
    options = dict(committed.header.options)
    options |= {"run": options["run"] | {"seeds": seeds}, "chain": options["chain"] | {"convergence": [1.0]}}
    config = TwoModelConfig.from_dict(options)
    records = [
        known[arm.protection][arm.seed % len(known[arm.protection])] | dataclasses.asdict(arm) for arm in arms(config)
    ]
    folder = RunFolder.create(path, {"experiment": "two-model", **config.to_dict()})
    folder.replace_records(records)
    return folder


def peak_mb() -> float:
    """The most memory that this process had so far."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def measure(path: str, answer: Any) -> None:
    """In a process of its own: read, judge and draw."""
    before = peak_mb()
    started = time.perf_counter()
    page = write_report([RunFolder(path)], Path(path) / "report.html")
    seconds = time.perf_counter() - started
    found = {"seconds": seconds, "peak_mb": peak_mb(), "imports_mb": before, "page_mb": page.stat().st_size / 2**20}
    answer.send(found)


def main() -> None:
    """Print a table; write JSON where a path is given."""
    found = {}
    with tempfile.TemporaryDirectory() as place:
        folders = {name: search(Path(place) / str(i), *size) for i, (name, size) in enumerate(SEARCHES.items())}
        folders |= {name: two_model(Path(place) / f"t{i}", n) for i, (name, n) in enumerate(TWO_MODEL_SEEDS.items())}
        context = multiprocessing.get_context("spawn")
        for name, folder in folders.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=measure, args=(str(folder.path), theirs))
            process.start()
            found[name] = {"records": len(folder.records()), **ours.recv()}
            process.join()
            print(f"{name:40} {found[name]['seconds']:7.1f} s {found[name]['peak_mb']:7.0f} MB", flush=True)
    if len(sys.argv) > 1:
        content = {"command": "python benchmarks/report.py", "environment": timing.environment(), "reports": found}
        Path(sys.argv[1]).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
