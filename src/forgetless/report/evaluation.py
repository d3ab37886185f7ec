"""Tables of how searches compare with random architectures, from what `forgetless.evaluation` recorded."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from forgetless.report.search import add_table
from forgetless.report.words import duration
from forgetless.tasks.base import decimal

Entry = Mapping[str, Any]

_ALONE = ("best", "mean", "random", "better by", "p")
_RANKS = ("surpasses", "regret", "τ", "τ unique", "τ top", "time")


def evaluation_table(found: Mapping[str, Any]) -> Table:
    """What searches selected against random architectures, over seeds; at most 80 columns wide.

    Args:
        found: What `forgetless evaluate` stored: `about`, `searches`, `summary`.

    Returns:
        The table, for `rich.console.Console.print`.
    """
    whole = Table.grid()
    for part in evaluation_tables(found):
        add_table(
            whole, part["title"], ("search", *part["columns"]), [[row["name"], *row["cells"]] for row in part["rows"]]
        )
    whole.add_row(Text("\n".join(evaluation_notes(found)), style="dim"))
    return whole


def evaluation_tables(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same as titles, columns and rows, for the page.

    Args:
        found: What `forgetless evaluate` stored.

    Returns:
        Two tables: stand-alone quality against random, and how well the shared weights rank.
    """
    summary: Sequence[Entry] = found["summary"]
    several = len({entry["run"] for entry in summary}) > 1
    names = [_name(entry, several=several) for entry in summary]
    means = [entry[key]["mean"] for entry in summary for key in ("found_mean", "random_mean") if entry[key]]
    decimals = 3 if max(map(abs, means), default=0.0) < 10 else 2
    alone = [
        [
            *(with_interval(entry[key], decimals) for key in ("found_best", "found_mean", "random_mean", "gain")),
            probability(entry["p"]),
        ]
        for entry in summary
    ]
    ranks = [
        [
            with_interval(entry["probability_of_surpassing_random"]),
            with_interval(entry["regret"], decimals),
            *(with_interval(entry[key]) for key in ("tau", "tau_unique", "tau_top")),
            _time(entry["seconds"]),
        ]
        for entry in summary
    ]
    return [
        _table(f"What searches selected: {found['about']['measure']}", _ALONE, names, alone),
        _table("Against the whole space, and the rank by shared weights", _RANKS, names, ranks),
    ]


def evaluation_notes(found: Mapping[str, Any]) -> list[str]:
    """How to read the tables.

    Args:
        found: What `forgetless evaluate` stored.
    """
    about, summary = found["about"], found["summary"]
    # A search that kept fewer architectures than were asked for selects all of them.
    fewest, most = (function(len(search["found"]) for search in found["searches"]) for function in (min, max))
    best = f"{fewest} to {most}" if fewest < most else str(most)
    notes = [f"{about['description']} The {best} best of each search are selected; as many are drawn uniformly."]
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


def _table(title: str, columns: Sequence[str], names: Sequence[str], cells: Sequence[list[str]]) -> dict[str, Any]:
    rows = [{"name": name, "cells": each} for name, each in zip(names, cells, strict=True)]
    return {"title": title, "columns": list(columns), "rows": rows}


def _name(entry: Entry, *, several: bool) -> str:
    name = f"{entry['strategy']}, {entry['protection']}"
    return f"{entry['run']}: {name}" if several else name


def with_interval(interval: Mapping[str, float | None] | None, decimals: int = 2) -> str:
    """Mean ± half the interval; – for nothing.

    Args:
        interval: From a summary.
        decimals: Digits after the point.

    >>> with_interval({"mean": 93.512, "low": 93.4, "high": 93.624}), with_interval(None)
    ('93.51 ±0.11', '–')
    """
    if interval is None or interval["mean"] is None:
        return "–"
    mean, high = interval["mean"], interval["high"]
    return decimal(mean, decimals) + ("" if high is None else f" ±{decimal(high - mean, decimals)}")


def probability(p: float | None) -> str:
    """A p-value; – where there is no test."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _time(interval: Mapping[str, float | None] | None) -> str:
    return "–" if interval is None or interval["mean"] is None else duration(interval["mean"])
