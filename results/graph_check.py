"""Whether our graph networks, trained alone, reach the accuracies of NAS-Bench-Graph's table.

$ python results/graph_check.py nasbenchgraph.csv --data cora

Draws 20 architectures uniformly (seed 2206, the same for every graph; none was looked at while the networks were
written), trains each once as the benchmark did (`forgetless.spaces.graph.published`), and compares with the table,
whose entries are means over three seeds. Each training has a seed of its own, so that their noise is independent.
What is done is kept, one line per training, in results/graph-check-cora.jsonl, and a second call goes on from there;
`--limit 5` makes at most five trainings. 50 to 60 CPU seconds per training on Cora.

Written down before any of these trainings was made, "within its noise" means all of

- the number of weights is the table's, for every architecture;
- the 95 % interval (Student's t) of the mean difference of validation accuracies, ours − table, has 0 in it or ends
  within 1 point of it, and so for test accuracies;
- Kendall's tau of ours with the table's validation accuracies is above 0 at p < 0.05, one-sided.

Seen after the first three: the table's test accuracies may not be of the epoch with the best validation accuracy. Of
networks that train badly they lie up to 41 points below the validation accuracies, ours beside them. So the same
comparison is made of the test accuracies after the epoch with the lowest validation loss and after the last epoch; the
verdict stays that of the criterion above.

The summary goes to results/graph-check-cora.json.
"""

import argparse
import csv
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from forgetless.data import GraphData, load_graph
from forgetless.runs import environment, write_atomically
from forgetless.spaces.graph import GraphArchitecture, GraphSpace
from forgetless.spaces.graph.published import recipe_of, train_as_published
from forgetless.training import cpu_arithmetic

SEED, NUM_DRAWN = 2206, 20
RESULTS = Path(__file__).parent
SPLITS = {"validation": "valid", "test": "test"}
OTHER_TESTS = ("test_by_loss", "last_test")


def drawn() -> list[GraphArchitecture]:
    space, generator = GraphSpace(), torch.Generator().manual_seed(SEED)
    return [space.sample(generator) for _ in range(NUM_DRAWN)]


def done(path: Path) -> list[dict[str, Any]]:
    """What earlier calls have made; a line that was cut off is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def train(name: str, data: GraphData, number: int, architecture: GraphArchitecture) -> dict[str, Any]:
    started = time.process_time()
    with cpu_arithmetic(1, flush_denormals=True):
        found = train_as_published(data, recipe_of(name), architecture, seed=1000 + number)
    return {
        "architecture": str(architecture),
        "seed": 1000 + number,
        **dataclasses.asdict(found),
        "cpu_seconds": time.process_time() - started,
    }


def in_table(path: Path, name: str) -> dict[str, dict[str, float]]:
    with path.open(encoding="utf-8") as file:
        return {
            row["arch"]: {
                **{split: float(row[f"{name}_{column}"]) for split, column in SPLITS.items()},
                "parameters": round(1e6 * float(row[f"params_{name}"])),
            }
            for row in csv.DictReader(file)
        }


def compared(ours: list[float], table: list[float]) -> dict[str, Any]:
    """Points of accuracy, and ranks."""
    differences = [a - b for a, b in zip(ours, table, strict=True)]
    mean, deviation, n = statistics.fmean(differences), statistics.stdev(differences), len(differences)
    margin = float(stats.t.ppf(0.975, n - 1)) * deviation / n**0.5
    low, high = mean - margin, mean + margin
    ranks = stats.kendalltau(ours, table, alternative="greater")
    return {
        "mean_difference": round(mean, 3),
        "interval": [round(low, 3), round(high, 3)],
        "standard_deviation": round(deviation, 3),
        "tau": round(float(ranks.statistic), 3),
        "p": float(f"{ranks.pvalue:.3g}"),
        "is_within": bool(low <= 0 <= high or (abs(low) <= 1 and abs(high) <= 1)),
    }


def summary(name: str, made: list[dict[str, Any]], table: dict[str, dict[str, float]]) -> dict[str, Any]:
    rows = [{**each, "table": table[each["architecture"]]} for each in made]
    found = {
        split: compared([100 * row[split] for row in rows], [row["table"][split] for row in rows]) for split in SPLITS
    }
    same_size = all(row["parameters"] == row["table"]["parameters"] for row in rows)
    return {
        "command": f"python results/graph_check.py nasbenchgraph.csv --data {name}",
        "recipe": dataclasses.asdict(recipe_of(name)),
        "num_architectures": len(rows),
        "num_wanted": NUM_DRAWN,
        "same_number_of_weights": same_size,
        **found,
        "other_tests": {
            name: compared([100 * row[name] for row in rows], [row["table"]["test"] for row in rows])
            for name in OTHER_TESTS
        },
        "is_reproduced": len(rows) == NUM_DRAWN
        and same_size
        and all(each["is_within"] for each in found.values())
        and found["validation"]["p"] < 0.05,
        "cpu_seconds": round(sum(row["cpu_seconds"] for row in rows)),
        "environment": environment(),
        "architectures": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("table", type=Path)
    parser.add_argument("--data", default="cora")
    parser.add_argument("--limit", type=int, default=NUM_DRAWN)
    options = parser.parse_args()
    kept = RESULTS / f"graph-check-{options.data}.jsonl"
    made, data = done(kept), load_graph(options.data)
    known = {each["architecture"] for each in made}
    wanted = [(number, each) for number, each in enumerate(drawn()) if str(each) not in known]
    for number, architecture in wanted[: options.limit]:
        made.append(train(options.data, data, number, architecture))
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(made[-1]) + "\n")
    if len(made) > 2:
        found = summary(options.data, made, in_table(options.table, options.data))
        write_atomically(RESULTS / f"graph-check-{options.data}.json", json.dumps(found, indent=1) + "\n")
        print(json.dumps({name: value for name, value in found.items() if name != "architectures"}, indent=1))


if __name__ == "__main__":
    main()
