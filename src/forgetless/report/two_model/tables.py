"""The summary of a two-model run as a table: what each protection did to A and to B."""

import math
from collections.abc import Mapping
from typing import Any

from rich import table as rich

from forgetless.experiments.two_model import TwoModelResult
from forgetless.protection import BASELINE
from forgetless.report.formats import (
    NOTHING,
    NOTHING_TO_REDUCE,
    is_control,
    or_nothing,
    plus_minus,
    points,
    strength_heading,
    symbol_of,
)
from forgetless.report.table import Row, Table, in_terminal, of_protection
from forgetless.report.two_model.shown import Panel, Shown

_COLUMNS = ("A before", "A after", "forgetting", "reduction", "B", "B's cost")


def summary_table(result: TwoModelResult) -> rich.Table:
    """What each protection did to A and to B, over seeds.

    Accuracies are in per cent and differences in points, with ± half the width of the 95 % interval; a reduction is
    followed by the ends of its interval, rounded outwards. With several panels there is a table for each, under its
    name. The α that the report's figures show is in bold.

    Args:
        result: Runs, all or some of those asked for.

    Returns:
        The table, for `rich.console.Console.print`.
    """
    shown = Shown(result)
    columns = (strength_heading(result.config.arms), *_COLUMNS)
    parts = [
        Table("\n" * (i > 0) + name, columns, summary_rows(shown, panel))
        for i, (panel, name) in enumerate(shown.names.items())
    ]
    return in_terminal(parts, _notes(shown), wrapped="reduction")


def summary_rows(shown: Shown, panel: Panel, *, on_page: bool = False) -> list[Row]:
    """The lines of a panel's table; on the page with one digit more."""
    here = [entry for entry in shown.result.summary() if panel.holds(entry)]
    here.sort(key=lambda entry: shown.result.config.arms.index(entry["protection"]))
    protections = [entry["protection"] for entry in here]
    rows = []
    for entry in here:
        name, strength = entry["protection"], entry["strength"]
        before, after, forgetting, b, cost = (
            plus_minus(entry[key], 2 if on_page else 1, 100, narrow=not on_page)
            for key in ("accuracy_a_before", "accuracy_a_after", "forgetting", "accuracy_b", "cost_b")
        )
        reduced = reduction_cell(entry, on_page=on_page, unprotected=BASELINE in protections)
        cells = [or_nothing(strength), before, after, forgetting, reduced, b, cost]
        is_chosen = protections.count(name) > 1 and strength is not None and strength == shown.chosen[name]
        rows.append(of_protection(name, cells, is_chosen=is_chosen))
    return rows


def reduction_cell(entry: Mapping[str, Any], *, on_page: bool, unprotected: bool = True) -> str:
    """A reduction: on the page `98.60 (97.1 to 99.5)`; in the terminal `98.6 [97,100]`, the ends rounded outwards.

    That there is none to reduce, where the unprotected arm does not forget; – where it is missing, as in that arm.
    """
    if entry["reduction"] is None:
        is_compared = unprotected and entry["protection"] != BASELINE and entry["cost_b"] is not None
        return ("no forgetting to reduce" if on_page else NOTHING_TO_REDUCE) if is_compared else NOTHING
    mean, low, high = (entry["reduction"][end] for end in ("mean", "low", "high"))
    if on_page:
        ends = f" ({'−∞' if low is None else points(low)} to {points(high)})" if high is not None else ""
        return points(mean, 2) + ends
    text = points(mean, 1 if abs(mean) < 0.9995 else 0)
    if high is None:
        return text
    least, most = math.floor(round(100 * low, 6)) if low is not None else None, math.ceil(round(100 * high, 6))
    return f"{text} [{'−∞' if least is None else points(least / 100, 0)},{points(most / 100, 0)}]"


def _notes(shown: Shown) -> list[str]:
    """How to read it, and what is missing."""
    summary, notes = shown.result.summary(), []
    seeds = max((entry["num_seeds"] for entry in summary), default=0)
    done, wanted = shown.progress
    if done < wanted:
        notes.append(f"Unfinished: {done} of {wanted} runs. Go on with `forgetless resume`.")
    if shown.diverged:
        notes.append(shown.diverged)
    if seeds > 1:
        notes.append(f"In % and points of test accuracy; ± and [ ]: 95 % interval over {seeds} seeds.")
    elif seeds:
        notes.append("In % and points of test accuracy; one seed gives no interval.")
    if any(entry["reduction"] is None and entry["cost_b"] is not None for entry in summary):
        notes.append(f"{NOTHING_TO_REDUCE}: the unprotected A lost nothing, no forgetting to reduce.")
    if summary and BASELINE not in shown.result.config.arms:
        notes.append("No reduction without an unprotected arm: add none to --protection.")
    strengths: dict[str, set[float]] = {}
    for entry in summary:
        strengths.setdefault(entry["protection"], set()).add(entry["strength"])
    several = [name for name, found in strengths.items() if len(found) > 1 and not is_control(name)]
    return notes + [
        f"Bold: the {symbol_of(name)} with the best mean validation accuracy of A and B." for name in several
    ]
