"""Picture and table of who overwrites whom, from what `forgetless.search.measure_arms` returned."""

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich import table as rich

from forgetless.errors import InputError
from forgetless.interference import Interference, InterferenceRecord
from forgetless.report.canvas import FONT, INK, QUIET, finish, grid
from forgetless.report.formats import NOTHING, arm_label, bracketed, points
from forgetless.report.table import Table, in_terminal, table_of
from forgetless.search.result import SearchResult
from forgetless.tasks import Unit

_HEIGHTS = (5.0, 4.5, 3.5)  # inches of a row of one, two and three panels


def interference_map(result: SearchResult, arms: Sequence[InterferenceRecord]) -> Figure:
    """A heat map per protection: how much worse off each model i is because j was trained and not i itself.

    Row j is the model that was trained, column i the one that was evaluated; the diagonal is 0, and grey is what
    diverged. All panels have the same colours, centred at 0.

    Args:
        result: The search.
        arms: As `measure_arms` returns them, at least one, of samples of one size.

    Returns:
        The figure, 9 inches wide: one panel per arm.

    Raises:
        InputError: If there is no arm.
    """
    if not arms:
        raise InputError("Expected at least one measured arm to draw, but got none. Measure one first.")
    unit = result.unit
    found = [arm.found for arm in arms]
    titles = [f"{_label(result, arm, arms)}\n{_part_title(unit, each)}" for arm, each in zip(arms, found, strict=True)]
    columns = min(len(arms), len(_HEIGHTS))
    figure, axes = grid(titles, columns, _HEIGHTS[columns - 1], "both")
    figure.set_layout_engine("compressed")  # for square panels
    matrices = [unit.scale * each.matrix for each in found]
    entries = np.concatenate([np.abs(matrix[np.isfinite(matrix)]) for matrix in matrices])
    most = float(entries.max(initial=0.0)) or 1.0  # where nothing moved, any scale shows white
    colours = mpl.colormaps["RdBu_r"].with_extremes(bad=QUIET)
    for ax, matrix in zip(axes, matrices, strict=True):
        edges = np.arange(len(matrix) + 1) + 0.5
        shown = np.ma.masked_invalid(matrix)
        mesh = ax.pcolormesh(edges, edges, shown, cmap=colours, vmin=-most, vmax=most, edgecolor="white", linewidth=0.6)
        ax.grid(visible=False)
        ax.set_aspect("equal")
        ax.set(xlim=(edges[0], edges[-1]), ylim=(edges[-1], edges[0]))  # the first model at the top
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(8, integer=True))
        for spine in ax.spines.values():
            spine.set_visible(False)
    batches = arms[0].num_batches
    span = f"{batches} batches" if batches > 1 else "batch"
    title = f"How much worse off a model is if another trains on the next {span} instead of itself"
    finish(figure, title, "model evaluated, i", "model trained, j")
    bar = figure.colorbar(mesh, ax=axes, fraction=0.04, pad=0.02, aspect=25)
    bar.set_label(f"worse off by, {unit.name}", fontsize=9.5, **FONT)
    bar.ax.tick_params(colors=QUIET, labelcolor=INK, labelsize=9, labelfontfamily="DejaVu Sans")
    bar.outline.set_visible(False)
    return figure


def _label(result: SearchResult, arm: InterferenceRecord, among: Sequence[InterferenceRecord]) -> str:
    seed = f", seed {arm.seed}" if len({each.seed for each in among}) > 1 else ""
    return arm_label(arm.protection, result.config.options_of(arm.protection).strength_or_none) + seed


def _part_title(unit: Unit, found: Interference) -> str:
    part = found.multi_model_part
    mean = "all diverged" if math.isnan(part.mean) else unit.text(part.mean)
    if part.low is None or part.high is None:
        return f"multi-model part {mean}\nno interval"
    return f"multi-model part {mean}\n95 % interval {unit.text(part.low)} to {unit.text(part.high)}"


def interference_table(result: SearchResult, arms: Sequence[InterferenceRecord]) -> rich.Table:
    """The numbers of every arm, at most 80 columns wide."""
    title = f"Who overwrites whom, {result.unit.name}, seed {arms[0].seed} after {arms[0].epochs} epochs"
    return in_terminal([page_table(result, arms, title)], _notes(arms))


def page_table(result: SearchResult, arms: Sequence[InterferenceRecord], title: str = "Who overwrites whom") -> Table:
    """Per arm the multi-model part, the largest entry of the matrix, and the share of pairs that got worse."""
    unit = result.unit
    columns = {
        "multi-model part": lambda arm: bracketed(arm.multi_model_part, unit.decimals, unit.scale),
        "largest entry": lambda arm: NOTHING if math.isnan(arm.largest) else unit.text(arm.largest),
        "pairs that got worse, %": lambda arm: NOTHING if math.isnan(arm.share_worse) else points(arm.share_worse, 0),
    }
    return table_of(title, arms, columns, f"In {unit.name}. {' '.join(_notes(arms))}")


def _notes(arms: Sequence[InterferenceRecord]) -> list[str]:
    """How to read the numbers, and what is missing."""
    first = arms[0]
    notes = [f"{len(first.architectures)} models, {first.num_batches} batches each. Part: mean over all pairs."]
    if first.multi_model_part.low is not None:
        notes.append("[ ]: 95 % interval over models.")
    if lost := [f"{arm.protection} {arm.num_diverged}" for arm in arms if arm.num_diverged]:
        notes.append(f"Pairs that diverged, left out: {', '.join(lost)}.")
    return notes
