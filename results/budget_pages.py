"""The page of budgets.json: does the budget hold, is it used, and what does the new text pay."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from budgets import BUDGETS, PATH, SEEDS
from page import Cells, Page, command_block, environment, read, table

Row = Mapping[str, Any]
Point = tuple[float, float]
"""Increase of the old loss, new loss."""

MEANINGS = """Means over optimizers and seeds, in nats per token of test text. *Used*: the increase over the budget,
where unprotected training exceeds it. *Kept*: how much of the way from the old weights was left after the way back.
*Against*: new loss minus that of the baseline at the same old loss and training time; negative is better."""

NAMES = {"kjv-nt": "New Testament (near)", "ptb": "Penn Treebank (distant)"}


def pages() -> list[Page]:
    found = read(PATH) if PATH.exists() else {"rows": []}
    rows = [row for row in found["rows"] if row["seed"] in SEEDS]
    held = [row for row in rows if row["protection"] == "budget"]
    if not held:
        return []
    within = [row for row in held if row["increase"] <= row["strength"]]
    used = mean(row["increase"] / row["strength"] for row in held if exceeds(rows, row))
    return [
        Page(
            name="budgets",
            title="A budget for the old loss",
            question="`Budget(nats)` sees no old data. Does old text that nothing has seen lose at most the budget, is "
            "the budget used, and is the new loss as good as that of WiSE-FT and L2-SP at the same old loss?",
            answer=f"The budget held in {len(within)} of {len(held)} runs; {used:.0%} of it was used where unprotected "
            "training exceeds it.",
            more=f"The new loss was lower than that of WiSE-FT in {better(rows, held, wise)} runs, and than that of "
            f"L2-SP in {better(rows, held, l2)}.",
            parts=[
                command_block(
                    "python results/budgets.py rates\npython results/budgets.py confirm",
                    f"{len({row['seed'] for row in held})} seeds, one thread, {environment(found['environment'])}. "
                    f"Training took {sum(row['seconds'] for row in rows) / 60:.0f} minutes in all.",
                ),
                f"## By text and budget\n\n{MEANINGS}",
                table([by_text(rows, held, to, nats) for to in NAMES for nats in BUDGETS]),
                "## By optimizer",
                table([by_optimizer(rows, held, name) for name in dict.fromkeys(row["optimizer"] for row in held)]),
            ],
        )
    ]


def by_text(rows: Sequence[Row], held: Sequence[Row], to: str, nats: float) -> Cells:
    chosen = [row for row in held if row["to"] == to and row["strength"] == nats]
    return {"new text": NAMES[to], "budget": f"{nats:g}", **cells(rows, chosen)}


def by_optimizer(rows: Sequence[Row], held: Sequence[Row], name: str) -> Cells:
    return {"optimizer": name, **cells(rows, [row for row in held if row["optimizer"] == name])}


def cells(rows: Sequence[Row], chosen: Sequence[Row]) -> Cells:
    relevant = [row for row in chosen if exceeds(rows, row)]
    return {
        "runs": str(len(chosen)),
        "within": str(sum(row["increase"] <= row["strength"] for row in chosen)),
        "used": shown((row["increase"] / row["strength"] for row in relevant), "{:.0%}"),
        "measured on own texts": shown((row["report"]["increase"] / row["strength"] for row in chosen), "{:.0%}"),
        "kept": shown((row["report"]["share"] for row in chosen), "{:.0%}"),
        "new loss": shown((row["new"] for row in chosen), "{:.3f}"),
        "unprotected: old loss, new loss": shown((none(rows, row)["increase"] for row in chosen), "+{:.3f}")
        + ", "
        + shown((none(rows, row)["new"] for row in chosen), "{:.3f}"),
        "against WiSE-FT": shown(differences(rows, chosen, wise), "{:+.3f}"),
        "against L2-SP": shown(differences(rows, chosen, l2), "{:+.3f}"),
    }


def shown(values: Iterable[float], form: str) -> str:
    found = list(values)
    return form.format(mean(found)) if found else "–"


def mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / max(1, len(found))


# ---- baselines at the same old loss ------------------------------------------------------------------------------


def of(rows: Sequence[Row], row: Row, protection: str) -> list[Row]:
    """The runs of another protection with the same optimizer, text and seed."""
    keys = ("optimizer", "to", "seed")
    found = [other for other in rows if other["protection"] == protection and all(other[k] == row[k] for k in keys)]
    return [other for other in found if other["increase"] is not None]


def none(rows: Sequence[Row], row: Row) -> Row:
    return of(rows, row, "none")[0]


def exceeds(rows: Sequence[Row], row: Row) -> bool:
    """Whether unprotected training exceeds the budget."""
    return bool(none(rows, row)["increase"] > row["strength"])


def wise(rows: Sequence[Row], row: Row) -> list[Point]:
    """The path from the unprotected end back to the old weights."""
    end = none(rows, row)
    return [(0.0, end["new_before"]), *((old, new) for _, old, new in end["path"]), (end["increase"], end["new"])]


def l2(rows: Sequence[Row], row: Row) -> list[Point]:
    """L2-SP from the strongest to none; old weights are that of infinite strength."""
    end = none(rows, row)
    others = sorted(of(rows, row, "l2"), key=lambda other: -other["strength"])
    return [(0.0, end["new_before"]), *((o["increase"], o["new"]) for o in others), (end["increase"], end["new"])]


def at(points: Sequence[Point], increase: float) -> float | None:
    """The lowest new loss of a curve at an increase of the old loss, on the lines between its points; None beyond them.

    >>> at([(0.0, 4.0), (0.1, 3.0)], 0.05)
    3.5
    """
    found = [new for old, new in points if old <= increase]
    for (left, high), (right, low) in itertools.pairwise(points):
        if min(left, right) <= increase <= max(left, right) and left != right:
            found.append(high + (low - high) * (increase - left) / (right - left))
    return min(found, default=None)


Curve = Callable[[Sequence[Row], Row], list[Point]]


def differences(rows: Sequence[Row], held: Sequence[Row], curve: Curve) -> list[float]:
    """New loss minus that of a baseline at the same old loss, where the baseline gets there."""
    reached = ((row["new"], at(curve(rows, row), row["increase"])) for row in held)
    return [new - other for new, other in reached if other is not None]


def better(rows: Sequence[Row], held: Sequence[Row], curve: Curve) -> str:
    found = differences(rows, held, curve)
    return f"{sum(each < 0 for each in found)} of {len(found)}"
