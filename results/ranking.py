"""What the shared weights of a search rank by, and what trainings alone rank by: why tau is what it is.

$ python results/ranking.py RUN/enas/seed-0 RUN/enas/seed-1

For each folder of a search under `wpl` on the benchmark recurrent-3 whose final state is kept: Kendall's tau of the
rewards on its shared weights with the benchmark over all cells, and over those whose three trainings differ by a
standard deviation below 0.1 nats; and tau of the number of nodes with each activation with both. Writes
results/ranking.json.

$ python results/ranking.py nasbench201.csv RUN/enas/seed-0 RUN/enas/seed-1

The same of searches on nas201 against a truth file: tau of the rewards of 100 architectures, drawn uniformly, with the
truth, and of the number of edges with each operation with both. Writes results/ranking-nas201.json.
"""

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forgetless.evaluation.ranking import kendall_tau
from forgetless.evaluation.truth import BENCHMARKS, read_truth
from forgetless.experiments import load_config
from forgetless.runs import RunFolder, environment, write_atomically
from forgetless.search import SearchConfig, make_space, shared_weight_rewards
from forgetless.spaces.nas201 import Nas201Space
from forgetless.spaces.recurrent import RecurrentSpace

STABLE = 0.1
NUM_DRAWN = 100


def tau(x: Any, y: Any) -> float:
    found = kendall_tau(x, y)
    assert found is not None
    return round(found.mean, 3)


def trained(folder: RunFolder) -> tuple[SearchConfig, dict[str, Any]]:
    """A search's configuration, and the state that it ended in under `wpl`."""
    config = load_config(folder)
    assert isinstance(config, SearchConfig)
    state = folder.load_trained(config.run.first_seed, "wpl")
    assert state is not None, f"{folder.path} has no final state; resume makes it only in a new search"
    return config, state


def with_number_of(names: Iterable[str], cells: Sequence[Any], values: Any) -> dict[str, float]:
    """Tau of how often each name is in a cell with the values."""
    return {name: tau([str(cell).count(name) for cell in cells], values) for name in names}


def measure(folder: RunFolder) -> dict[str, Any]:
    config, state = trained(folder)
    space = make_space(config)
    assert isinstance(space, RecurrentSpace)
    truth = read_truth("recurrent-3", space)
    with (BENCHMARKS / "recurrent-3.csv").open(encoding="utf-8") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        stable = np.array([float(row["test_error_std"]) for row in rows]) < STABLE
    (rewards,) = shared_weight_rewards(config, [state], truth.architectures)
    return {
        "seed": config.run.first_seed,
        "tau": tau(rewards, truth.qualities),
        "num_stable": int(stable.sum()),
        "tau_stable": tau(np.array(rewards)[stable], truth.qualities[stable]),
        "rewards_with_number_of": with_number_of(space.activations, truth.architectures, rewards),
        "benchmark_with_number_of": with_number_of(space.activations, truth.architectures, truth.qualities),
    }


def measure_against(truth_file: str, folder: RunFolder) -> dict[str, Any]:
    config, state = trained(folder)
    space = make_space(config)
    assert isinstance(space, Nas201Space)
    truth = read_truth(truth_file, space)
    drawn = torch.randperm(len(truth), generator=torch.Generator().manual_seed(0))[:NUM_DRAWN].tolist()
    cells, quality = [truth.architectures[i] for i in drawn], truth.qualities[drawn]
    (rewards,) = shared_weight_rewards(config, [state], cells)
    return {
        "seed": config.run.first_seed,
        "tau": tau(rewards, quality),
        "best_reward": round(max(rewards), 3),
        "rewards_with_number_of": with_number_of(space.operations, cells, rewards),
        "truth_with_number_of": with_number_of(space.operations, cells, quality),
    }


def main() -> None:
    if sys.argv[1].endswith(".csv"):
        name, searches = "ranking-nas201.json", [measure_against(sys.argv[1], RunFolder(Path(p))) for p in sys.argv[2:]]
    else:
        name, searches = "ranking.json", [measure(RunFolder(Path(path))) for path in sys.argv[1:]]
    found = {"environment": environment(), "searches": searches}
    write_atomically(Path(__file__).parent / name, json.dumps(found, indent=1) + "\n")
    print(json.dumps(searches, indent=1))


if __name__ == "__main__":
    main()
