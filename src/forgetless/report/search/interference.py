"""Picture, table and file of who overwrites whom, from what `forgetless.search.measure_arms` returned."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table
from rich.text import Text

from forgetless.errors import InputError
from forgetless.interference import Interference
from forgetless.report.canvas import FONT, INK, QUIET, grid, label_outer_axes, title_figure
from forgetless.report.search.figures import add_table
from forgetless.report.search.findings import arm_label
from forgetless.report.two_model.groups import points
from forgetless.runs import INTERFERENCE, RunFolder, read_sealed, write_sealed
from forgetless.search.result import SearchResult
from forgetless.tasks import Unit

COLUMNS = ("multi-model part", "largest entry", "pairs that got worse, %")
"""What `interference_cells` holds."""

_HEIGHTS = (5.0, 4.5, 3.5)  # inches of a row of one, two and three panels
_DOTS_PER_INCH = 150

Arm = Mapping[str, Any]


def interference_map(result: SearchResult, arms: Sequence[Arm]) -> Figure:
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
    found = [Interference.from_dict(arm) for arm in arms]
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
    label_outer_axes(axes, "model evaluated, i", "model trained, j")
    bar = figure.colorbar(mesh, ax=axes, fraction=0.04, pad=0.02, aspect=25)
    bar.set_label(f"worse off by, {unit.name}", fontsize=9.5, **FONT)
    bar.ax.tick_params(colors=QUIET, labelcolor=INK, labelsize=9, labelfontfamily="DejaVu Sans")
    bar.outline.set_visible(False)
    batches = arms[0]["num_batches"]
    span = f"{batches} batches" if batches > 1 else "batch"
    title_figure(figure, f"How much worse off a model is if another trains on the next {span} instead of itself")
    return figure


def _label(result: SearchResult, arm: Arm, among: Sequence[Arm]) -> str:
    seed = f", seed {arm['seed']}" if len({each["seed"] for each in among}) > 1 else ""
    return arm_label(result, arm["protection"]) + seed


def _part_title(unit: Unit, found: Interference) -> str:
    part = found.multi_model_part
    ends = (
        "no interval"
        if part.low is None or part.high is None
        else f"95 % interval {unit.text(part.low)} to {unit.text(part.high)}"
    )
    mean = "all diverged" if math.isnan(part.mean) else unit.text(part.mean)
    return f"multi-model part {mean}\n{ends}"


def interference_cells(unit: Unit, arm: Arm) -> list[str]:
    """The cells of COLUMNS for one arm.

    Args:
        unit: Of the search.
        arm: One of those that `measure_arms` returns.

    Returns:
        The multi-model part with its interval, such as `0.025 [0.010, 0.041]`; the largest entry of the matrix; the
        share of pairs that got worse. – for what is missing.
    """
    part = arm["multi_model_part"]
    ends = "" if part["low"] is None else f" [{unit.text(part['low'])}, {unit.text(part['high'])}]"
    return [
        "–" if part["mean"] is None else unit.text(part["mean"]) + ends,
        "–" if arm["largest"] is None else unit.text(arm["largest"]),
        "–" if arm["share_worse"] is None else points(arm["share_worse"], 0),
    ]


def interference_table(result: SearchResult, arms: Sequence[Arm]) -> Table:
    """The numbers of every arm, at most 80 columns wide.

    Args:
        result: The search.
        arms: As `measure_arms` returns them, at least one.

    Returns:
        The table, for `rich.console.Console.print`.
    """
    unit, first = result.unit, arms[0]
    whole = Table.grid()
    title = f"Who overwrites whom, {unit.name}, seed {first['seed']} after {first['epochs']} epochs"
    rows = [[arm["protection"], *interference_cells(unit, arm)] for arm in arms]
    add_table(whole, title, ("protection", *COLUMNS), rows)
    whole.add_row(Text("\n".join(interference_notes(arms)), style="dim"))
    return whole


def interference_notes(arms: Sequence[Arm]) -> list[str]:
    """How to read the numbers, and what is missing.

    Args:
        arms: As `measure_arms` returns them, at least one.
    """
    first = arms[0]
    notes = [
        f"{len(first['architectures'])} models, {first['num_batches']} batches each. Part: mean over all pairs.",
        "[ ]: 95 % interval over models." if first["multi_model_part"]["low"] is not None else "",
    ]
    if lost := [f"{arm['protection']} {arm['num_diverged']}" for arm in arms if arm["num_diverged"]]:
        notes.append(f"Pairs that diverged, left out: {', '.join(lost)}.")
    return [note for note in notes if note]


def write_interference(result: SearchResult, arms: Sequence[Arm], run: RunFolder, folder: Path) -> Path:
    """Write interference.json and its picture.

    Args:
        result: The search.
        arms: As `measure_arms` returns them, at least one.
        run: The folder of the search.
        folder: Where; made if there is none.

    Returns:
        The path of the picture.

    Raises:
        OSError: If a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    picture = (folder / INTERFERENCE).with_suffix(".png")
    interference_map(result, arms).savefig(picture, dpi=_DOTS_PER_INCH)
    write_sealed(folder / INTERFERENCE, {"arms": list(arms)}, run.header.digest)
    return picture


def load_interference(folder: RunFolder) -> list[Arm]:
    """What `write_interference` left in a run folder; empty if nothing was measured.

    Args:
        folder: The run.

    Raises:
        InputError: If the file is damaged.
    """
    path = folder.path / INTERFERENCE
    if not path.is_file():
        return []
    try:
        arms: list[Arm] = read_sealed(path, folder.header.digest)["arms"]
        return [{**arm, **Interference.from_dict(arm).as_dict()} for arm in arms]
    except InputError as error:
        raise InputError(f"{error} Measure again, or remove it.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"Expected measurements of interference in {path}, but it is damaged. Measure again or remove it."
        ) from error
