"""The tables of `forgetless evaluate`: how searches compare with random architectures."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import table as rich

from forgetless.forgetting import Interval
from forgetless.records import made_of
from forgetless.report.formats import NOTHING, duration, plus_minus, probability
from forgetless.report.table import Row, Table, in_terminal

Entry = Mapping[str, Any]


def evaluation_table(found: Mapping[str, Any]) -> rich.Table:
    """What searches select against random architectures, over seeds, and how well the shared weights rank.

    Args:
        found: What `forgetless evaluate` stored: `about`, `searches`, `summary`.
    """
    summary: Sequence[Entry] = found["summary"]
    means = [entry[key]["mean"] for entry in summary for key in ("found_mean", "random_mean") if entry[key]]
    decimals = 3 if max(map(abs, means), default=0.0) < 10 else 2
    alone = {"best": "found_best", "mean": "found_mean", "random": "random_mean", "better by": "gain"}
    ranks = {"surpasses": "probability_of_surpassing_random", "regret": "regret"}
    ranks |= {"τ": "tau", "τ unique": "tau_unique", "τ top": "tau_top"}
    parts = [
        (f"What searches select: {found['about']['measure']}", alone, "p"),
        ("Against the whole space, and the rank by shared weights", ranks, "time"),
    ]
    tables = []
    for title, columns, last in parts:
        digits = {key: decimals if key in {*alone.values(), "regret"} else 2 for key in columns.values()}
        rows = []
        for entry in summary:
            cells = [plus_minus(made_of(entry[key], Interval | None), digits[key]) for key in columns.values()]
            seconds = entry["seconds"] or {"mean": None}
            time = NOTHING if seconds["mean"] is None else duration(seconds["mean"])
            rows.append(Row(_name(entry, summary), [*cells, probability(entry["p"]) if last == "p" else time]))
        tables.append(Table(title, (*columns, last), rows, first="search"))
    return in_terminal(tables, evaluation_notes(found))


def evaluation_notes(found: Mapping[str, Any]) -> list[str]:
    """How to read the tables."""
    about, summary = found["about"], found["summary"]
    # A search that kept fewer architectures than were asked for selects all of them.
    fewest, most = (function(len(search["found"]) for search in found["searches"]) for function in (min, max))
    best = f"{fewest} to {most}" if fewest < most else str(most)
    notes = [f"{about['description']} Each search selects its {best} best; as many are drawn uniformly."]
    tests = {entry["test"] for entry in summary} - {None}
    if "seeds" in tests:
        notes.append("±: half the 95 % interval over seeds. p: sign-flip test over seeds, one-sided.")
    if "architectures" in tests:
        notes.append("One seed: p from permuting found and random architectures; no intervals.")
    notes.append("Surpasses: chance that an architecture drawn uniformly is worse. Better by: mean against random.")
    if any(entry["tau"] for entry in summary):
        notes.append("τ: Kendall's, of rewards on shared weights with the truth; top: among the best 20 %.")
    if found["failures"]:
        notes.append(f"{len(found['failures'])} trainings failed and are left out.")
    return notes


def _name(entry: Entry, among: Sequence[Entry]) -> str:
    name = f"{entry['strategy']}, {entry['protection']}"
    return f"{entry['run']}: {name}" if len({each["run"] for each in among}) > 1 else name
