"""The summary as a table for the terminal, at most 80 columns wide."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text

from forgetless.experiments.two_model import TwoModelResult
from forgetless.options import number
from forgetless.protection import BASELINE
from forgetless.report.two_model.groups import (
    Panel,
    chosen_strength,
    diverged_arms,
    is_control,
    panel_name,
    panels,
    points,
    progress,
    strength_heading,
    symbol_of,
)

NOTHING_TO_REDUCE = "none to reduce"

_COLUMNS = ("protection", "", "A before", "A after", "forgetting", "reduction", "B", "B's cost")
_REDUCTION = _COLUMNS.index("reduction")
_WIDTH = 80


def summary_table(result: TwoModelResult) -> Table:
    """What each protection did to A and to B, over seeds.

    Accuracies are in per cent and differences in points, with ± half the width of the 95 % interval; a reduction is
    followed by the ends of its interval. With several panels there is a table for each, under its name. The α that
    the report's figures show is in bold.

    Args:
        result: Runs, all or some of those asked for.

    Returns:
        The table, for `rich.console.Console.print`.
    """
    shown = panels(result)
    summary = result.summary()
    rows = {panel: _rows(result, panel, summary) for panel in shown}
    # The same widths in every panel, so that the columns stand in line.
    strength = strength_heading(entry["protection"] for entry in summary)
    columns = tuple(name or strength for name in _COLUMNS)
    lines = [columns, *(cells for found in rows.values() for cells, _ in found)]
    widths = [max(len(cells[i]) for cells in lines) for i in range(len(_COLUMNS))]
    if (excess := sum(widths) + len(widths) - 1 - _WIDTH) > 0:
        widths[_REDUCTION] = max(widths[_REDUCTION] - excess, len("reduction"))
    whole = Table.grid()
    for i, panel in enumerate(shown):
        whole.add_row(Text(("\n" if i else "") + panel_name(panel, shown), style="bold"))
        table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
        for j, (name, width) in enumerate(zip(columns, widths, strict=True)):
            justify: Literal["left", "right"] = "right" if j else "left"
            table.add_column(name, justify=justify, width=width, no_wrap=j != _REDUCTION)
        for cells, bold in rows[panel]:
            table.add_row(*cells, style="bold" if bold else None)
        whole.add_row(table)
    whole.add_row(_notes(result, summary))
    return whole


def _rows(result: TwoModelResult, panel: Panel, summary: list[dict[str, Any]]) -> list[tuple[tuple[str, ...], bool]]:
    """The cells of a panel's table, line by line, and whether the line is in bold."""
    here = [entry for entry in summary if panel.holds(entry)]
    unprotected = any(entry["protection"] == BASELINE for entry in here)
    counts = Counter(entry["protection"] for entry in here)
    chosen = {name: chosen_strength(result, name) for name in counts if counts[name] > 1}
    rows = []
    for entry in sorted(here, key=lambda entry: result.config.arms.index(entry["protection"])):
        strength = entry["strength"]
        cells = (
            str(entry["protection"]),
            "" if strength is None else number(strength),
            *(_plus_minus(entry[key]) for key in ("accuracy_a_before", "accuracy_a_after", "forgetting")),
            reduction_text(entry, unprotected=unprotected),
            _plus_minus(entry["accuracy_b"]),
            _plus_minus(entry["cost_b"]),
        )
        rows.append((cells, strength is not None and strength == chosen.get(entry["protection"])))
    return rows


def reduction_text(entry: Mapping[str, Any], *, unprotected: bool) -> str:
    """A reduction in per cent with its interval.

    Args:
        entry: A line of the summary.
        unprotected: Whether its panel has an unprotected arm.

    Returns:
        Such as `98.6 [97,100]`, the ends rounded outwards, ∞ where there is no bound; `none to reduce` where the
        unprotected arm does not forget; `–` where it is missing, or is the line itself.
    """
    prevented = entry["reduction"]
    if prevented is None:
        is_compared = entry["protection"] != BASELINE and entry["cost_b"] is not None
        return NOTHING_TO_REDUCE if unprotected and is_compared else "–"
    mean = points(prevented["mean"], 1 if abs(prevented["mean"]) < 0.9995 else 0)
    if entry["num_seeds"] < 2:
        return mean
    low = "−∞" if prevented["low"] is None else points(math.floor(round(100 * prevented["low"], 6)) / 100, 0)
    high = "∞" if prevented["high"] is None else points(math.ceil(round(100 * prevented["high"], 6)) / 100, 0)
    return f"{mean} [{low},{high}]"


def _plus_minus(interval: Mapping[str, float | None] | None) -> str:
    if interval is None or interval["mean"] is None:
        return "–"
    mean = points(interval["mean"])
    if interval["high"] is None:
        return mean
    half = interval["high"] - interval["mean"]
    return f"{mean} ±{points(half, 1 if half < 0.0995 else 0)}"


def _notes(result: TwoModelResult, summary: list[dict[str, Any]]) -> Text:
    """How to read it, and what is missing."""
    seeds = max((entry["num_seeds"] for entry in summary), default=0)
    notes = []
    done, wanted = progress(result)
    if done < wanted:
        notes.append(f"Unfinished: {done} of {wanted} runs. Go on with `forgetless resume`.")
    if result.diverged:
        notes.append(diverged_arms(result))
    if seeds > 1:
        notes.append(f"In % and points of test accuracy; ± and [ ]: 95 % interval over {seeds} seeds.")
    elif seeds:
        notes.append("In % and points of test accuracy; one seed gives no interval.")
    if any(entry["reduction"] is None and entry["cost_b"] is not None for entry in summary):
        notes.append(f"{NOTHING_TO_REDUCE}: the unprotected A lost nothing, no forgetting to reduce.")
    if summary and BASELINE not in result.config.arms:
        notes.append("No reduction without an unprotected arm: add none to --protection.")
    notes += [
        f"Bold: the {symbol_of(name)} with the best mean validation accuracy of A and B."
        for name in dict.fromkeys(entry["protection"] for entry in summary)
        if not is_control(name) and len({e["strength"] for e in summary if e["protection"] == name}) > 1
    ]
    return Text("\n".join(notes), style="dim")
