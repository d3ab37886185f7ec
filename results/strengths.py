"""Choose the strength of every protection in a search, on seeds that no comparison uses.

$ python results/strengths.py nas201-digits

For every protection and strength: searches of two seeds, 100 and 101, judged by the mean of err₂, the models' error at
the end of their epoch, over the last half of the epochs and on the half of the validation data that measures
forgetting. err₂ is err₁ + forgetting: it is small only where models learn and keep what they learnt. The smallest wins;
no stand-alone quality and no test data are looked at. Writes results/strengths/NAME.json; what is there already is not
made again.
"""

import json
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from forgetless.options import command_line
from forgetless.protection import PROTECTIONS
from forgetless.runs import environment, write_atomically
from forgetless.search import SearchConfig, run
from forgetless.search.records import EpochRecord

FOLDER = Path(__file__).parent / "strengths"

SEARCHES: dict[str, dict[str, Any]] = {
    "nas201-digits": {
        "space": {"name": "nas201", "operations": ["none", "skip_connect", "nor_conv_3x3"], "units": 2},
        "optimizer": {"learning_rate": 0.05},
        "schedule": {"batches_per_model": 8, "strategy_steps": 2},
    },
    "recurrent-3": {
        "space": {"name": "recurrent", "nodes": 3, "units": 32},
        "task": {"name": "text", "vocabulary": 1000},
        # Below this rate and length every epoch ends with all models better than they were: nothing is forgotten.
        "optimizer": {"name": "adam", "learning_rate": 0.01, "max_gradient_norm": 1.0},
        "schedule": {"batches_per_model": 25, "epochs": 8, "strategy_steps": 2},
    },
}
"""The options of the searches that the shipped benchmarks judge."""

STRENGTHS: dict[str, dict[str, tuple[float, ...]]] = {
    "nas201-digits": {
        "none": (0,), "freeze": (0,), "wpl": (0.1, 1, 10, 100), "ewc": (0.001, 0.01, 0.1, 1, 10, 100),
        "l2": (0.01, 0.1, 1, 10), "mas": (0.001, 0.01, 0.1, 1, 10), "si": (0.1, 1, 10), "nsas": (0.3, 1, 3),
        "ogl": (5, 20, 50), "coupling": (0.1, 1, 10, 100), "wpl-tolerance": (0.01, 0.1, 1),
    },
    "recurrent-3": {
        "none": (0,), "wpl": (10, 20, 30, 100, 300, 1e3, 3e3, 1e4), "freeze": (0,),
        "ewc": (0.01, 0.1, 1, 10, 100, 1e3, 1e4), "l2": (1e-4, 1e-3, 0.01, 0.1, 1),
        "mas": (1e-5, 1e-4, 1e-3, 0.01, 0.1, 1), "si": (0.1, 0.3, 1, 10),
        "nsas": (0.3, 1, 3), "ogl": (5, 20, 50), "coupling": (1, 10, 100, 1e3, 1e4),
        "wpl-tolerance": (0.001, 0.01, 0.1, 1),
    },
}  # fmt: skip

OTHERS: dict[tuple[str, str], dict[str, Any]] = {("nas201-digits", "coupling"): {"num_examples": 5}}
"""Other options of a protection than its own."""


def config_of(name: str, protection: str, strength: float) -> SearchConfig:
    chosen = {"name": protection, **OTHERS.get((name, protection), {})}
    if PROTECTIONS[protection].has_strength():
        chosen["strength"] = float(strength)
    run = {"seeds": 2, "first_seed": 100}
    selection = {"final_samples": 0}
    return SearchConfig.from_dict({**SEARCHES[name], "protections": [chosen], "run": run, "selection": selection})


def measure(config: SearchConfig) -> dict[str, Any]:
    epochs = [record for record in run(config) if isinstance(record, EpochRecord)]
    records = [record for record in epochs if record.epoch >= config.schedule.epochs // 2]
    means = {
        key: statistics.fmean(found) if (found := [v for r in records if (v := r.number(key)) is not None]) else None
        for key in ("error_first", "error_second", "forgetting_mean", "strategy_mean_reward")
    }
    return {**means, "num_diverged": sum(r.num_diverged for r in records)}


def main() -> None:
    name = sys.argv[1]
    path = FOLDER / f"{name}.json"
    found: dict[str, Any] = {"environment": environment()}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = found.setdefault("rows", [])
    known = {(row["protection"], row["strength"]) for row in rows}
    wanted = [
        (p, float(s)) for p, strengths in STRENGTHS[name].items() for s in strengths if (p, float(s)) not in known
    ]
    FOLDER.mkdir(exist_ok=True)
    with ProcessPoolExecutor(2) as pool:
        futures = {pair: pool.submit(measure, config_of(name, *pair)) for pair in wanted}
        for pair, future in futures.items():
            command = command_line(config_of(name, *pair), "search")
            rows.append({"protection": pair[0], "strength": pair[1], **future.result(), "command": command})
            print({key: value for key, value in rows[-1].items() if key != "command"}, flush=True)
            write_atomically(path, json.dumps(found, indent=1) + "\n")
    best: dict[str, dict[str, Any]] = {}
    worst = {"error_second": float("inf")}
    for row in rows:
        error = row["error_second"]
        # None: every model diverged.
        if error is not None and error < best.get(row["protection"], worst)["error_second"]:
            best[row["protection"]] = row
    found["chosen"] = {protection: row["strength"] for protection, row in best.items()}
    write_atomically(path, json.dumps(found, indent=1) + "\n")
    print(found["chosen"])


if __name__ == "__main__":
    main()
