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
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forgetless.evaluation.ranking import kendall_tau
from forgetless.evaluation.truth import BENCHMARKS, read_truth
from forgetless.report import SearchResult, load_result
from forgetless.runs import RunFolder, environment, write_atomically
from forgetless.search import make_space, shared_weight_rewards

STABLE = 0.1
NUM_DRAWN = 100


def tau(x: Any, y: Any) -> float:
    found = kendall_tau(x, y)
    assert found is not None
    return round(found.mean, 3)


def measure(folder: RunFolder) -> dict[str, Any]:
    with (BENCHMARKS / "recurrent-3.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    result = load_result(folder)
    assert isinstance(result, SearchResult)
    space, seed = make_space(result.config), result.config.first_seed
    state = folder.load_trained(seed, "wpl")
    assert state is not None, f"{folder.path} has no final state; resume makes it only in a new search"
    cells = [space.parse(row["architecture"]) for row in rows]
    (rewards,) = shared_weight_rewards(result.config, [state], cells)
    quality = -np.array([float(row["test_error"]) for row in rows])
    stable = np.array([float(row["test_error_std"]) for row in rows]) < STABLE
    counts = {name: [row["architecture"].count(name) for row in rows] for name in space.activations}
    return {
        "seed": seed,
        "tau": tau(rewards, quality),
        "num_stable": int(stable.sum()),
        "tau_stable": tau(np.array(rewards)[stable], quality[stable]),
        "rewards_with_number_of": {name: tau(count, rewards) for name, count in counts.items()},
        "benchmark_with_number_of": {name: tau(count, quality) for name, count in counts.items()},
    }


def measure_against(truth_file: str, folder: RunFolder) -> dict[str, Any]:
    result = load_result(folder)
    assert isinstance(result, SearchResult)
    space, seed = make_space(result.config), result.config.first_seed
    state = folder.load_trained(seed, "wpl")
    assert state is not None, f"{folder.path} has no final state; resume makes it only in a new search"
    truth = read_truth(truth_file, space)
    drawn = torch.randperm(len(truth), generator=torch.Generator().manual_seed(0))[:NUM_DRAWN].tolist()
    cells, quality = [truth.architectures[i] for i in drawn], truth.qualities[drawn]
    (rewards,) = shared_weight_rewards(result.config, [state], cells)
    counts = {name: [str(cell).count(name) for cell in cells] for name in space.operations}
    return {
        "seed": seed,
        "tau": tau(rewards, quality),
        "best_reward": round(max(rewards), 3),
        "rewards_with_number_of": {name: tau(count, rewards) for name, count in counts.items()},
        "truth_with_number_of": {name: tau(count, quality) for name, count in counts.items()},
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
