"""How long, and in which way, the trainings of a benchmark have to train so that it can judge.

$ FORGETLESS_TRAININGS=runs/trainings python results/benchmark_batches.py recurrent-3
$ FORGETLESS_TRAININGS=runs/trainings python results/benchmark_batches.py nas201-digits-hard

Trains cells drawn uniformly from the different functions of the benchmark's space (seed 1124) under every recipe of its
study with several seeds, one training after the other in one thread. What is done is kept, one line per training, in
results/benchmark-batches-NAME.jsonl, and a second call goes on from there; trainings are also kept as those of
`forgetless benchmark` are, which makes none of them again. `--limit 10` makes at most ten trainings, `--limit 0` only
sums up. The order is that of the study's plan: what decides most comes first.

The summary goes to results/benchmark-batches-NAME.json. For each recipe, over the cells whose trainings are complete,
with errors on the test split, in nats per token or as a share of images:

- spread: standard deviation between cells of the medians over seeds, and noise: the root mean square, and the median,
  over cells of the standard deviation between seeds; a training that diverged counts with the error of guessing;
- halves: Kendall's tau between the orders of two single seeds, mean over pairs of seeds: what one training resolves;
- reliability: the share of the variance between single trainings of one seed that is between cells (the intraclass
  correlation of Shrout and Fleiss 1979, case 3), and what follows for the benchmark of all functions with as many seeds
  as three hours of one core allow: r_n = n r / (1 + (n - 1) r), and tau of a ranking that knows the expected errors
  with the mean over n seeds, (2 / pi) arcsin sqrt(r_n), if all is normal;
- diverged: share of trainings whose error is not finite or, of text, above that of guessing;
- CPU seconds of a training with its evaluation.

And for each pair of recipes Kendall's tau between the orders by medians over the seeds that both have.
"""

import argparse
import itertools
import json
import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from forgetless.evaluation.benchmark import BENCHMARKS, Benchmark
from forgetless.evaluation.ranking import kendall_tau
from forgetless.evaluation.trainings import Training, TrainingStore, default_store, run_training
from forgetless.runs import environment, write_atomically
from forgetless.search import SearchConfig, load_task, make_space
from forgetless.search.rates import RateConfig

SEED = 1124
RESULTS = Path(__file__).parent
LINEAR = RateConfig(schedule="linear")


@dataclass(frozen=True)
class Recipe:
    """How a training is made.

    Attributes:
        num_batches: How long.
        rates: How the learning rate changes; constant if None.
        reset_state_every: Batches after which training goes on from a zero state, from which errors are measured; 7 is
            what a model of a search is trained for at a time. Never if None.
        changes: Of the benchmark's configuration.
    """

    num_batches: int
    rates: RateConfig | None = None
    reset_state_every: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    def training(self, config: SearchConfig, digest: str, cell: Any, seed: int) -> Training:
        config = config.changed(self.changes)
        return Benchmark(1, config, self.num_batches, 1, self.rates, self.reset_state_every).training(
            digest, cell, seed
        )


@dataclass(frozen=True)
class Study:
    """What is trained for one benchmark.

    Attributes:
        num_cells: How many are drawn.
        recipes: By name.
        plan: Recipe, seed and how many of the cells, in the order in which they are trained.
    """

    num_cells: int
    recipes: dict[str, Recipe]
    plan: tuple[tuple[str, int, int], ...]


SLOW, FAST = {"optimizer.learning_rate": 0.003}, {"optimizer.learning_rate": 0.01}
STUDIES = {
    # About an hour of one core in all.
    "recurrent-3": Study(
        num_cells=24,
        recipes={
            "version-1": Recipe(200, changes=SLOW),
            "constant-200": Recipe(200, None, 7, SLOW),
            "constant-500": Recipe(500, None, 7, SLOW),
            "constant-1000": Recipe(1000, None, 7, SLOW),
            "linear-200": Recipe(200, LINEAR, 7, FAST),
            "linear-500": Recipe(500, LINEAR, 7, FAST),
            "linear-1000": Recipe(1000, LINEAR, 7, FAST),
            "linear-1000-slow": Recipe(1000, LINEAR, 7, SLOW),
        },
        plan=(
            *(("constant-200", seed, 24) for seed in (0, 1)),
            *(("linear-500", seed, 24) for seed in (0, 1)),
            *(("linear-200", seed, 24) for seed in (0, 1)),
            *(("linear-1000", seed, 24) for seed in (0, 1)),
            *((name, seed, 24) for seed in (0, 1) for name in ("constant-500", "constant-1000", "linear-1000-slow")),
            *(("version-1", seed, 24) for seed in (0, 1)),
            *((f"constant-{length}", 2, 24) for length in (200, 500, 1000)),
            *((f"linear-{length}", 2, 24) for length in (200, 500, 1000)),
        ),
    ),
    # Half an hour.
    "nas201-digits-hard": Study(
        num_cells=20,
        recipes={
            "linear-1000": Recipe(1000, LINEAR),
            "linear-500": Recipe(500, LINEAR),
            "constant-1000": Recipe(1000),
        },
        plan=(
            *(("linear-1000", seed, 8) for seed in (0, 1)),
            *(("linear-1000", seed, 20) for seed in (0, 1, 2)),
            *((name, seed, 20) for seed in (0, 1, 2) for name in ("linear-500", "constant-1000")),
        ),
    ),
}


def functions(config: SearchConfig) -> list[Any]:
    """The first notation of each function of the space."""
    space = make_space(config)
    first: dict[str, Any] = {}
    for cell in space:
        first.setdefault(space.canonical_form(cell), cell)
    return list(first.values())


def drawn(config: SearchConfig, number: int) -> list[Any]:
    """Some of them."""
    return random.Random(SEED).sample(functions(config), number)


def done(path: Path) -> list[dict[str, Any]]:
    """What earlier calls have made; a line that was cut off is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def train(path: Path, study: Study, config: SearchConfig, digest: str, limit: int | None) -> list[dict[str, Any]]:
    """Make what the plan has and the file has not; each is in the file before the next begins."""
    rows, store, cells = done(path), TrainingStore(default_store()), drawn(config, study.num_cells)
    had = {(row["recipe"], row["seed"], row["architecture"]) for row in rows}
    planned = dict.fromkeys((name, seed, cell) for name, seed, number in study.plan for cell in cells[:number])
    wanted = [(name, seed, cell) for name, seed, cell in planned if (name, seed, str(cell)) not in had]
    for name, seed, cell in wanted[:limit]:
        job, started = study.recipes[name].training(config, digest, cell, seed), time.process_time()
        result = run_training(store.to_make(job))
        store.save(job, result)
        error = result.test_error if math.isfinite(result.test_error) else None
        row = {"recipe": name, "seed": seed, "architecture": str(cell), "test_error": error}
        rows.append(row | {"cpu_seconds": round(time.process_time() - started, 2)})
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(f"{len(rows)} of {len(planned)}: {rows[-1]}", flush=True)
    return rows


Errors = dict[str, dict[int, float]]
"""By architecture and seed."""


def by_recipe(rows: list[dict[str, Any]], guess: float) -> dict[str, Errors]:
    """The test errors of each recipe; guessing in the place of one that diverged."""
    found: dict[str, Errors] = {}
    for row in rows:
        error = guess if row["test_error"] is None else min(row["test_error"], guess)
        found.setdefault(row["recipe"], {}).setdefault(row["architecture"], {})[row["seed"]] = error
    return found


def tau(x: list[float], y: list[float]) -> float | None:
    found = kendall_tau(x, y)
    return None if found is None else round(found.mean, 3)


def complete(errors: Errors) -> tuple[list[str], list[int]]:
    """The cells and seeds of the finished trainings: every seed that half of the cells or more have."""
    counts = {seed: sum(seed in each for each in errors.values()) for each in errors.values() for seed in each}
    seeds = sorted(seed for seed, count in counts.items() if 2 * count >= len(errors))
    return [cell for cell, each in errors.items() if all(seed in each for seed in seeds)], seeds


def reliability(table: Sequence[Sequence[float]]) -> float:
    """Of single trainings; rows are cells, columns seeds."""
    errors = np.array(table)
    n, k = errors.shape
    cells, seeds = errors.mean(1, keepdims=True), errors.mean(0, keepdims=True)
    between = k * float(cells.var(ddof=1))
    within = float(((errors - cells - seeds + errors.mean()) ** 2).sum()) / ((n - 1) * (k - 1))
    return float((between - within) / (between + (k - 1) * within))


def in_three_hours(share: float, num_functions: int, cpu_seconds: float) -> dict[str, Any]:
    """How many seeds of all functions, and the ceiling of tau that follows from a reliability."""
    seeds, share = int(3 * 3600 / (num_functions * cpu_seconds)), max(0.0, share)
    whole = seeds * share / (1 + (seeds - 1) * share)
    return {"seeds": seeds, "tau": round(2 / math.pi * math.asin(math.sqrt(whole)), 3)}


def resolution(errors: Errors, guess: float) -> dict[str, Any]:
    """What one recipe resolves."""
    cells, seeds = complete(errors)
    table = [[errors[cell][seed] for seed in seeds] for cell in cells]
    found: dict[str, Any] = {"cells": len(cells), "seeds": len(seeds)}
    if len(cells) < 3:
        return found
    found["spread"] = round(statistics.stdev(map(statistics.median, table)), 4)
    found["best"] = round(min(map(statistics.median, table)), 4)
    if len(seeds) > 1:
        between = [statistics.stdev(each) for each in table]
        pairs = [tau(list(x), list(y)) for x, y in itertools.combinations(zip(*table, strict=True), 2)]
        found |= {
            "noise": round(math.sqrt(statistics.fmean(sd**2 for sd in between)), 4),
            "median_noise": round(statistics.median(between), 4),
            "halves": round(statistics.fmean(each for each in pairs if each is not None), 3),
            "reliability": round(reliability(table), 3),
        }
    found["diverged"] = round(statistics.fmean(error >= guess for each in table for error in each), 4)
    return found


def compared(first: Errors, second: Errors) -> dict[str, Any] | None:
    """Tau between two recipes, by the median over the seeds that both have."""
    (mine, seeds), (others, other_seeds) = complete(first), complete(second)
    cells, both = [cell for cell in mine if cell in others], [seed for seed in seeds if seed in other_seeds]
    if len(cells) < 3 or not both:
        return None
    medians = [[statistics.median(errors[cell][seed] for seed in both) for cell in cells] for errors in (first, second)]
    return {"tau": tau(*medians), "cells": len(cells), "seeds": len(both)}


def summary(study: Study, rows: list[dict[str, Any]], guess: float, num_functions: int) -> dict[str, Any]:
    recipes = {name: errors for name in study.recipes if (errors := by_recipe(rows, guess).get(name))}
    found = {name: resolution(errors, guess) for name, errors in recipes.items()}
    for name, row in found.items():
        seconds = statistics.median(each["cpu_seconds"] for each in rows if each["recipe"] == name)
        row["cpu_seconds"] = round(seconds, 2)
        if "reliability" in row:
            row["in_three_hours"] = in_three_hours(row["reliability"], num_functions, seconds)
    pairs = {
        f"{first} / {second}": between
        for first, second in itertools.combinations(recipes, 2)
        if (between := compared(recipes[first], recipes[second])) is not None
    }
    return {"recipes": found, "tau": pairs, "functions": num_functions, "environment": environment()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=STUDIES)
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    study, config = STUDIES[options.name], BENCHMARKS[options.name].config
    task, path = load_task(config), RESULTS / f"benchmark-batches-{options.name}.jsonl"
    rows = train(path, study, config, task.digest(), options.limit)
    found = summary(study, rows, task.error_of_guessing, len(functions(config)))
    write_atomically(path.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
