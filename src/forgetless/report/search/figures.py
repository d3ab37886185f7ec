"""Figure and table of a search, from its records alone.

Forgetting is averaged over `SearchResult.forgetting_epochs` and rewards over the last quarter; only seeds that have all
their epochs count in a table, a summary or a sentence. Curves show every record.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.table import Table
from rich.text import Text

from forgetless.errors import InputError
from forgetless.forgetting import ROUNDING
from forgetless.protection import BASELINE
from forgetless.report.canvas import BAND, FONT, INK, colour, grid, place_legends, title_figure
from forgetless.report.search.findings import arm_label, curves_title
from forgetless.report.two_model.groups import duration, points
from forgetless.report.two_model.tables import NOTHING_TO_REDUCE
from forgetless.search.result import (
    FORGETTING,
    MULTI_MODEL,
    REDUCTIONS,
    REWARD,
    SearchResult,
    epochs_text,
)
from forgetless.tasks.base import Unit, decimal

_PANELS = (
    *zip(FORGETTING, ("(a) mean over models", "(b) mean of the best 5", "(c) maximum"), strict=True),
    (REWARD, "(d) reward of the strategy"),
)
_PART = (MULTI_MODEL, "(e) multi-model part")
_MOST_MARKED = 12  # epochs that get a dot each
_WIDTH = 80


def forgetting_curves(result: SearchResult) -> Figure:
    """Forgetting and reward epoch by epoch: figure 4 of arXiv:1902.08232, with all protections in each panel.

    Forgetting is err₂ − err₁, the error at the end of the epoch less that right after a model's own training: (a) its
    mean over the epoch's models, (b) over the five with the lowest err₁, (c) its maximum; (d) is the mean reward of
    what the strategy proposed; (e), only if it was measured, is the multi-model part. Lines are means over seeds, bands
    their least and greatest. The epochs that tables average over are shaded.

    Args:
        result: Records, all or some of those asked for.

    Returns:
        The figure: four or five panels.

    Raises:
        InputError: If no epoch is recorded.
    """
    if not result.epochs():
        raise InputError("Expected at least one finished epoch to draw, but got none. Finish an epoch first.")
    panels = (*_PANELS, _PART) if result.has_multi_model_part else _PANELS
    figure, axes = grid([title for _, title in panels], 2, 2.9, "x")
    unit = result.unit
    for ax, (key, _) in zip(axes, panels, strict=True):
        averaged = result.last_quarter if key == REWARD else result.forgetting_epochs
        ax.axvspan(averaged.start + 0.5, averaged.stop + 0.5, color=BAND, alpha=0.55, linewidth=0, zorder=0.5)
        if key != REWARD:
            ax.axhline(0, color=INK, linewidth=0.9, zorder=1.5)
        drawn = [
            _draw(ax, result, name, key, 1.0 if key == REWARD else unit.scale, 2 + i)
            for i, name in enumerate(result.protections)
        ]
        if not any(drawn):
            ax.text(0.5, 0.5, "not recorded", transform=ax.transAxes, ha="center", fontsize=10, **FONT)
        ax.set_xlim(0.5, max(result.config.schedule.epochs, 2) + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        labels = {REWARD: unit.reward, MULTI_MODEL: unit.name}
        ax.set_ylabel(labels.get(key, f"err₂ − err₁, {unit.name}"), fontsize=9.5, **FONT)
    for ax in axes[-2:]:
        ax.set_xlabel("epoch", fontsize=10, **FONT)
    shades = [Patch(color=colour(name), label=arm_label(result, name)) for name in result.protections]
    averages: list[Artist] = [Patch(facecolor=BAND, alpha=0.55, label="averaged in the tables")]
    place_legends(figure, shades, averages)
    title_figure(figure, curves_title(result))
    return figure


def _draw(ax: Axes, result: SearchResult, protection: str, key: str, scale: float, order: float) -> bool:
    """One protection's mean over seeds and their band; False if there is nothing to draw."""
    by_epoch: dict[int, list[float]] = {}
    for record in result.epochs(protection):
        if (value := record.get(key)) is not None:
            by_epoch.setdefault(record["epoch"], []).append(scale * value)
    if not by_epoch:
        return False
    # An epoch in which all models diverged is a gap, one in which nothing was measured is none.
    every = result.config.interference.every if key == MULTI_MODEL else 1
    epochs = range(every - 1, max(by_epoch) + 1, every)
    mean, low, high = (
        np.asarray([statistic(by_epoch[e]) if e in by_epoch else math.nan for e in epochs])
        for statistic in (np.mean, min, max)
    )
    at, shade = np.asarray(epochs) + 1, colour(protection)
    if max(map(len, by_epoch.values())) > 1:
        ax.fill_between(at, low, high, color=shade, alpha=0.13, linewidth=0, zorder=order - 0.5)
    marker = "o" if result.config.schedule.epochs // every <= _MOST_MARKED else ""
    ax.plot(at, mean, color=shade, linewidth=1.7, zorder=order, gid=protection, marker=marker, markersize=3.5)
    return True


# The terminal


def search_table(result: SearchResult) -> Table:
    """What each protection did to forgetting, and what came of the search, over seeds; at most 80 columns wide.

    Args:
        result: Records, all or some of those asked for.

    Returns:
        The table, for `rich.console.Console.print`.
    """
    unit, summary = result.unit, result.summary()
    whole = Table.grid()
    trains = result.config.trains_shared_weights
    if summary and trains:
        lost = [_forgetting_row(unit, entry, summary) for entry in summary]
        columns: tuple[str, ...] = ("protection", "mean", "best 5", "maximum", "reduction of mean, %")
        add_table(whole, f"Forgetting err₂ − err₁, {unit.name}, {epochs_text(result.forgetting_epochs)}", columns, lost)
    if summary:
        came = [_outcome_row(unit, entry) for entry in summary]
        columns = ("protection", "reward", "derived", "random", "better by", "time")
        test = "test error in nats per token" if unit.scale == 1 else "test error in %"
        measured = f"\nReward ({unit.reward}) and {test}" if trains else test.capitalize()
        add_table(whole, measured, columns, came)
    whole.add_row(Text("\n".join(_notes(result, summary)), style="dim"))
    return whole


def add_table(whole: Table, title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """One more table below what there is.

    Args:
        whole: A grid of one column.
        title: Over the table.
        columns: Their names; the first is aligned to the left, the others to the right.
        rows: One cell per column each.
    """
    whole.add_row(Text(title, style="bold"))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for j, name in enumerate(columns):
        justify: Literal["left", "right"] = "right" if j else "left"
        # Where all columns together are too wide, a cell is broken at a space; no digit is ever left out.
        table.add_column(name, justify=justify, overflow="fold")
    for cells in rows:
        table.add_row(*cells)
    whole.add_row(table)


def _forgetting_row(unit: Unit, entry: Mapping[str, Any], summary: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        str(entry["protection"]),
        *(plus_minus(entry[key], unit) for key in FORGETTING),
        share_cell(entry, "reduction_mean", summary, whole_numbers=True),
    ]


def _outcome_row(unit: Unit, entry: Mapping[str, Any]) -> list[str]:
    return [
        str(entry["protection"]),
        plus_minus(entry["reward"]),
        *(plus_minus(entry[key], unit) for key in ("derived_test_error", "random_test_error", "gain")),
        duration(entry["seconds"]),
    ]


def share_cell(
    entry: Mapping[str, Any], key: str, summary: Sequence[Mapping[str, Any]], *, whole_numbers: bool = False
) -> str:
    """A reduction in per cent with its interval.

    Args:
        entry: A line of the summary.
        key: One of the values of REDUCTIONS.
        summary: All lines: is there an unprotected one?
        whole_numbers: Without decimals.

    Returns:
        Such as `75 [60, 85]`; `none to reduce` where the unprotected searches do not forget; – where it is missing.
    """
    prevented = entry[key]
    if prevented is None:
        free = next((e for e in summary if e["protection"] == BASELINE), None)
        forgets = next(name for name, reduced in REDUCTIONS.items() if reduced == key)
        is_idle = free is not None and free[forgets] is not None and free[forgets]["mean"] <= ROUNDING
        return NOTHING_TO_REDUCE if is_idle and entry["protection"] != BASELINE else "–"
    decimals = 0 if whole_numbers else 1
    mean = points(prevented["mean"], decimals)
    if prevented["high"] is None:  # one seed: only a lower end can be without bound
        return mean
    low = "−∞" if prevented["low"] is None else points(prevented["low"], decimals)
    return f"{mean} [{low}, {points(prevented['high'], decimals)}]"


def plus_minus(interval: Mapping[str, float | None] | None, unit: Unit | None = None) -> str:
    """Mean ± half the width of the interval; – for nothing.

    Args:
        interval: From a summary.
        unit: Whose scale and digits; the number itself with three decimals if None.

    >>> plus_minus({"mean": 0.0254, "low": 0.0154, "high": 0.0354}), plus_minus(None)
    ('0.025 ±0.010', '–')
    """
    if interval is None or interval["mean"] is None:
        return "–"
    scale, decimals = (1.0, 3) if unit is None else (unit.scale, unit.decimals)
    mean = decimal(scale * interval["mean"], decimals)
    if interval["high"] is None:
        return mean
    return f"{mean} ±{decimal(scale * (interval['high'] - interval['mean']), decimals)}"


def _notes(result: SearchResult, summary: Sequence[Mapping[str, Any]]) -> list[str]:
    """How to read it, and what is missing."""
    notes = []
    done, wanted = result.progress
    if done < wanted:
        notes.append(f"Unfinished: {done} of {wanted} searches. Go on with `forgetless resume`.")
    seeds = max((entry["num_seeds"] for entry in summary), default=0)
    trains = result.config.trains_shared_weights
    sign = " Negative forgetting is progress." * trains
    if seeds > 1:
        notes.append(f"± and [ ]: 95 % interval over {seeds} seeds.{sign}")
    elif seeds:
        notes.append(f"One seed gives no interval.{sign}")
    if not trains:
        notes.append(f"Strategy {result.config.strategy_name}: no shared weights, no rewards, no forgetting.")
        return notes
    if any(share_cell(entry, "reduction_mean", summary) == NOTHING_TO_REDUCE for entry in summary):
        notes.append(f"{NOTHING_TO_REDUCE}: without protection the models do not forget on average.")
    if summary and BASELINE not in result.config.arms:
        notes.append("No reduction without an unprotected arm: take --controls.")
    if summary:
        notes.append(f"Reward: mean over {epochs_text(result.last_quarter)}. Time: over all seeds.")
    if parts := [f"{e['protection']} {plus_minus(e[MULTI_MODEL], result.unit)}" for e in summary if e[MULTI_MODEL]]:
        notes.append(f"Multi-model part: {', '.join(parts)}.")
    if diverged := [f"{entry['protection']} {entry['num_diverged']}" for entry in summary if entry["num_diverged"]]:
        notes.append(f"Diverged models, left out: {', '.join(diverged)}.")
    return notes
