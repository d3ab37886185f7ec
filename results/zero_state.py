"""What was taken for divergence in version 1 of the benchmark recurrent-3: errors from a state that training never saw.

$ python results/zero_state.py

Of the twelve functions that diverged at least once in version 1 (a validation error above that of guessing), eight,
drawn uniformly, are trained as there with seed 0: 200 batches, through which the state
is carried from the first to the last. Each trained cell is measured twice on the test split, 32 streams as in training:
from a zero state, as errors are, and from the state that its training ended with. Then the same with training that goes
on from a zero state every 7 batches. Three CPU seconds per training. Writes results/zero-state.json.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from forgetless.evaluation.benchmark import BENCHMARKS
from forgetless.protection.none import NoProtection
from forgetless.runs import environment, write_atomically
from forgetless.search import load_task, make_space
from forgetless.search.setup import make_search_space, make_supernet
from forgetless.tasks.base import BatchLoss
from forgetless.tasks.text import LanguageModelling
from forgetless.training import cpu_arithmetic, make_optimizer, train

RESULTS = Path(__file__).parent
NUM_BATCHES = 200
CELLS = (
    "tanh(0) tanh(0) identity(0)",
    "relu(0) identity(0) identity(2)",
    "identity(0) tanh(1) identity(1)",
    "identity(0) identity(0) identity(0)",
    "tanh(0) identity(0) identity(2)",
    "identity(0) identity(1) identity(1)",
    "identity(0) identity(1) identity(2)",
    "identity(0) relu(1) identity(1)",
)
CONFIG = BENCHMARKS["recurrent-3"].config.changed({"optimizer.learning_rate": 0.003})


def batches(task: LanguageModelling, loss: BatchLoss, every: int | None) -> Iterator[Any]:
    for step, batch in enumerate(task.training_batches(NUM_BATCHES, torch.Generator().manual_seed(0))):
        if every is not None and step % every == 0:
            loss.state = None
        yield batch


@torch.no_grad()
def error(task: LanguageModelling, model: Any, cell: Any, state: Any) -> float | None:
    """The test error from a state; None where it is not finite."""
    total, seen = 0.0, 0
    model.eval()
    for words, targets in task.batches("test"):
        value, state = model.loss(words, targets, cell, state)
        total, seen = total + float(value) * targets.numel(), seen + targets.numel()
    return round(total / seen, 4) if math.isfinite(total) else None


def measure(task: LanguageModelling, cell: Any, every: int | None) -> dict[str, float | None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = make_supernet("cpu", task, make_search_space(CONFIG), 0)
        loss = task.loss_of(model.train(), cell)
        optimizer = make_optimizer(CONFIG.optimizer, model)
        train(batches(task, loss, every), loss, optimizer, NoProtection([]), max_gradient_norm=1.0)
    return {"from_zero": error(task, model, cell, None), "from_the_last_state": error(task, model, cell, loss.state)}


def main() -> None:
    task = load_task(CONFIG)
    assert isinstance(task, LanguageModelling)
    rows = []
    for cell in map(make_space(CONFIG).parse, CELLS):
        with cpu_arithmetic(1, flush_denormals=True):
            measured = {"carried": measure(task, cell, None), "reset": measure(task, cell, 7)}
        rows.append({"architecture": str(cell), **measured})
        print(rows[-1], flush=True)
    found = {"error_of_guessing": task.error_of_guessing, "cells": rows, "environment": environment()}
    write_atomically(RESULTS / "zero-state.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
