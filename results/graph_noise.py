"""What the table of NAS-Bench-Graph can tell apart: its own noise, from functions that it has twice.

$ python results/graph_noise.py nasbenchgraph.csv

Of a node that no other reads, `arma` and `cheb` are the same function, with the same distribution of initial weights
(`GraphSpace.canonical_form`). The table has both, trained with other seeds: pairs of independent measurements of one
thing, which nobody made for this purpose. For each column, over the pairs that differ in one such node:

- the mean difference, `arma` − `cheb`, which is 0 if the two are the same;
- the standard deviation of one entry, √(mean of (difference²) / 2), and that of all entries of the table;
- Kendall's tau of one side with the other, over all pairs and over the best fifth by the other side, mean of both ways.
  So well would another such table rank.

Writes results/graph-noise.json.
"""

import csv
import json
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from forgetless.evaluation.ranking import rank_correlations
from forgetless.runs import environment, write_atomically
from forgetless.spaces.graph import GraphArchitecture, GraphSpace

SPACE = GraphSpace()
NORMAL_95 = 1.96


def num_arma(architecture: GraphArchitecture) -> int:
    """Nodes that nobody reads with this operation."""
    return sum(architecture.operations[leaf - 1] == "arma" for leaf in architecture.leaves)


def twins(architectures: list[GraphArchitecture]) -> list[tuple[GraphArchitecture, GraphArchitecture]]:
    """Of each function that has both, the notation without such an `arma`, and the only one with a single one."""
    same = defaultdict(list)
    for architecture in architectures:
        same[SPACE.canonical_form(architecture)].append(architecture)
    found = []
    for notations in same.values():
        none, one = ([each for each in notations if num_arma(each) == number] for number in (0, 1))
        if len(none) == len(one) == 1:
            found.append((none[0], one[0]))
    return found


def resolution(pairs: list[tuple[float, float]], everything: list[float]) -> dict[str, Any]:
    """Of one column: points of accuracy, and ranks."""
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    differences = [b - a for a, b in pairs]
    margin = NORMAL_95 * statistics.stdev(differences) / math.sqrt(len(differences))
    mean = statistics.fmean(differences)
    both = [rank_correlations(first, second, top=0.2), rank_correlations(second, first, top=0.2)]

    def tau(part: str) -> float:
        return round(statistics.fmean(getattr(found, part).tau.mean for found in both), 3)

    return {
        "mean_difference": round(mean, 3),
        "interval": [round(mean - margin, 3), round(mean + margin, 3)],
        "noise": round(math.sqrt(statistics.fmean(d * d for d in differences) / 2), 3),
        "median_difference": round(statistics.median(map(abs, differences)), 3),
        "spread": round(statistics.stdev(everything), 3),
        "tau": tau("overall"),
        "tau_top": tau("top"),
    }


def main() -> None:
    with Path(sys.argv[1]).open(encoding="utf-8") as file:
        rows = {row["arch"]: row for row in csv.DictReader(file)}
    architectures = [SPACE.parse(text) for text in rows]
    pairs = twins(architectures)
    columns = [name for name in next(iter(rows.values())) if name.endswith(("_valid", "_test"))]
    found = {
        "command": "python results/graph_noise.py nasbenchgraph.csv",
        "num_architectures": len(architectures),
        "num_functions": len({SPACE.canonical_form(each) for each in architectures}),
        "num_pairs": len(pairs),
        "environment": environment(),
        "columns": {
            name: resolution(
                [(float(rows[str(one)][name]), float(rows[str(other)][name])) for one, other in pairs],
                [float(row[name]) for row in rows.values()],
            )
            for name in columns
        },
    }
    write_atomically(Path(__file__).parent / "graph-noise.json", json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["columns"], indent=1))


if __name__ == "__main__":
    main()
