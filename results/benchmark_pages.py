"""The page of how the trainings of a benchmark are made: zero-state.json and benchmark-batches-*.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from page import HERE, Cells, Page, command_block, environment, read, table

NAMES = {"recurrent-3": "nats", "nas201-digits-hard": "share of images"}
MEANINGS = """*Spread*: standard deviation between cells of the median over seeds. *Noise*: root mean square over cells
of the standard deviation between seeds. *Halves*: Kendall's τ between the orders by two single seeds. *Reliability*:
the share of the variance of single trainings that is between cells. *In 3 h*: how many seeds of all functions three
hours of one core make, and what τ a ranking that knows the expected errors then reaches, if all is normal. A study
that is not at its end has fewer cells in some rows."""


def pages() -> list[Page]:
    zero = HERE / "zero-state.json"
    studies = {name: read(path) for name in NAMES if (path := HERE / f"benchmark-batches-{name}.json").exists()}
    if not zero.exists() or not studies:
        return []
    found = read(zero)
    return [
        Page(
            name="benchmark-trainings",
            title="Trainings of a benchmark",
            question="Which trainings from scratch tell architectures apart: how long, at which learning rate, and why "
            "did some of `recurrent-3`, version 1, diverge?",
            answer=answer(found),
            more="Errors are measured from a zero state; weights that last saw one hundreds of batches ago may rely on "
            "a state that it does not lead to.",
            parts=[
                "## From which state",
                command_block("python results/zero_state.py", f"One thread, {environment(found['environment'])}."),
                f"Test error in nats of eight cells that diverged. {found['error_of_guessing']:.2f} is guessing.",
                table([by_state(row) for row in found["cells"]]),
                *(part for name, study in studies.items() for part in section(name, study)),
            ],
        )
    ]


def answer(found: Mapping[str, Any]) -> str:
    guess = found["error_of_guessing"]
    worst = {how: [row[how]["from_zero"] for row in found["cells"]] for how in ("carried", "reset")}
    above = {how: sum(error is None or error > guess for error in errors) for how, errors in worst.items()}
    return (
        f"They did not diverge: of {len(found['cells'])} cells {above['carried']} are worse than guessing from a zero "
        f"state, none from the state that training ended with; trained from zero every 7 batches, {above['reset']} are."
    )


def by_state(row: Mapping[str, Any]) -> Cells:
    columns = {
        "carried throughout: from zero": row["carried"]["from_zero"],
        "from the last state": row["carried"]["from_the_last_state"],
        "zero every 7 batches: from zero": row["reset"]["from_zero"],
        "the last state": row["reset"]["from_the_last_state"],
    }
    shown = {name: "not finite" if error is None else f"{error:.3f}" for name, error in columns.items()}
    return {"cell": f"`{row['architecture']}`", **shown}


def section(name: str, study: Mapping[str, Any]) -> Sequence[str]:
    known = {recipe: row for recipe, row in study["recipes"].items() if "spread" in row}
    pairs = {pair: row for pair, row in study["tau"].items() if row["tau"] is not None}
    return [
        f"## {name}",
        command_block(
            f"python results/benchmark_batches.py {name}", f"One thread, {environment(study['environment'])}."
        ),
        f"Test errors, {NAMES[name]}. The script says what each recipe is. {MEANINGS}",
        table([by_recipe(recipe, row) for recipe, row in known.items()]),
        *([table([between(pair, row) for pair, row in pairs.items()])] if pairs else []),
    ]


def by_recipe(recipe: str, row: Mapping[str, Any]) -> Cells:
    return {
        "recipe": recipe,
        "cells": str(row["cells"]),
        "seeds": str(row["seeds"]),
        "best": f"{row['best']:.4f}",
        "spread": f"{row['spread']:.4f}",
        "noise": f"{row['noise']:.4f}" if "noise" in row else "–",
        "halves": f"{row['halves']:.2f}" if "halves" in row else "–",
        "reliability": f"{row['reliability']:.2f}" if "reliability" in row else "–",
        "diverged": f"{row['diverged']:.0%}",
        "CPU seconds": f"{row['cpu_seconds']:.1f}",
        "in 3 h: seeds": str(row["in_three_hours"]["seeds"]) if "in_three_hours" in row else "–",
        "τ": f"{row['in_three_hours']['tau']:.2f}" if "in_three_hours" in row else "–",
    }


def between(pair: str, row: Mapping[str, Any]) -> Cells:
    return {
        "orders of": pair,
        "τ": f"{row['tau']:.2f}",
        "cells": str(row["cells"]),
        "seeds": str(row["seeds"]),
    }
