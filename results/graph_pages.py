"""The page of NAS-Bench-Graph: whether our trainings give its table, and what that table can tell apart."""

from collections.abc import Mapping
from typing import Any

from page import HERE, Cells, Page, command_block, environment, read, table

NAMES = {
    "cora": "Cora",
    "citeseer": "Citeseer",
    "pubmed": "PubMed",
    "cs": "Coauthor CS",
    "physics": "Coauthor Physics",
    "photo": "Amazon Photo",
    "computers": "Amazon Computers",
    "arxiv": "ogbn-arxiv",
}
SPLITS = {"validation": "valid", "test": "test"}

NOISE = """The {num_architectures:,} architectures are {num_functions:,} functions: `arma` and `cheb` of a node that no
other reads are the same, with the same distribution of initial weights. The table has both, trained with other seeds.
These are {num_pairs:,} pairs of independent measurements of one thing, each a mean over three trainings."""

CEILING = """The standard deviations are large because some trainings fail: half of the pairs agree far better. τ says
how well another table like this one would rank: a ranking by fewer trainings, or by shared weights, has no reason to do
better. One without any noise of its own might: τ counts the noise of both sides."""

CRITERION = """“Within its noise” was written down before the trainings: the number of weights is the table's; the 95 %
interval of the mean difference has 0 in it or ends within 1 point of it, on both splits; and τ of validation accuracies
is above 0 at p < 0.05."""


def signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0:+.{digits}f}".replace("-", "−")


def with_interval(found: Mapping[str, Any], digits: int) -> str:
    low, high = found["interval"]
    return f"{signed(found['mean_difference'], digits)} ({signed(low, digits)} … {signed(high, digits)})"


def noise_rows(columns: Mapping[str, Any]) -> list[Cells]:
    """Of each graph and split."""
    return [
        {
            "graph": NAMES[graph],
            "split": split,
            "`arma` − `cheb`, points": with_interval(found, 2),
            "half of the pairs differ by more than": f"{found['median_difference']:.2f}",
            "standard deviation of an entry": f"{found['noise']:.1f}",
            "of all entries": f"{found['spread']:.1f}",
            "τ of one side with the other": f"{found['tau']:.2f}",
            "in the best 20 %": f"{found['tau_top']:.2f}",
        }
        for graph in NAMES
        for split, column in SPLITS.items()
        if (found := columns.get(f"{graph}_{column}")) is not None
    ]


def noise_part(noise: Mapping[str, Any]) -> str:
    return "\n\n".join(
        [
            "## What the table can tell apart",
            NOISE.format(**noise),
            table(noise_rows(noise["columns"])),
            CEILING,
            command_block(noise["command"], f"Seconds. {environment(noise['environment'])}."),
        ]
    )


def check_rows(check: Mapping[str, Any]) -> list[Cells]:
    """Of each architecture."""
    return [
        {
            "architecture": f"`{row['architecture'].replace('|', '&#124;')}`",
            **{
                f"{split}: {whose}": f"{value:.1f}"
                for split in SPLITS
                for whose, value in (("ours", 100 * row[split]), ("table", row["table"][split]))
            },
        }
        for row in check["architectures"]
    ]


def check_part(name: str, check: Mapping[str, Any]) -> str:
    """What the trainings on one graph say."""
    compared = {
        "validation, best epoch": check["validation"],
        "test, epoch with the best validation accuracy": check["test"],
        "test, epoch with the lowest validation loss": check["other_tests"]["test_by_loss"],
        "test, last epoch": check["other_tests"]["last_test"],
    }
    rows = [
        {
            "ours": what,
            "ours − table, points": with_interval(found, 1),
            "standard deviation of the differences": f"{found['standard_deviation']:.1f}",
            "τ of ours with the table": f"{found['tau']:.2f}",
            "p": f"{found['p']:.2g}",
        }
        for what, found in compared.items()
    ]
    weights = "The number of weights is the table's for every one." if check["same_number_of_weights"] else ""
    return "\n\n".join(
        [
            f"## {NAMES[name]}: {check['num_architectures']} trainings alone",
            table(rows),
            f"The criterion is about the first two rows. {weights}".strip(),
            table(check_rows(check)),
            command_block(
                check["command"],
                f"{check['cpu_seconds'] / 60:.0f} CPU minutes, one thread, {environment(check['environment'])}. "
                f"Trainings: `results/graph-check-{name}.jsonl`.",
            ),
        ]
    )


def in_words(name: str, check: Mapping[str, Any]) -> str:
    if check["is_reproduced"]:
        found = "reproduced within its noise"
    elif check["num_architectures"] < check["num_wanted"]:
        found = f"not decided, {check['num_architectures']} of {check['num_wanted']} trainings made"
    else:
        found = "not reproduced"
    return f"{NAMES[name]}: {found}"


def pages() -> list[Page]:
    noise = read(HERE / "graph-noise.json")
    checks = {name: read(path) for name in NAMES if (path := HERE / f"graph-check-{name}.json").is_file()}
    cora = noise["columns"]["cora_test"]
    verdicts = (
        "; ".join(in_words(name, check) for name, check in checks.items())
        or "Not decided: fewer than three of our trainings are kept so far"
    )
    return [
        Page(
            name="graph-check",
            title="The table of NAS-Bench-Graph",
            question="Do our graph networks, trained alone, reach the published accuracies, and what can these judge?",
            answer=f"{verdicts}. On Cora's test nodes τ of the table with itself is {cora['tau']:.2f}, in the best "
            f"20 % {cora['tau_top']:.2f}.",
            more=CRITERION,
            parts=[*(check_part(name, check) for name, check in checks.items()), noise_part(noise)],
        )
    ]
