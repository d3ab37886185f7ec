"""What every figure is drawn on: colours, the grid of panels, legends, intervals and axes."""

import base64
import colorsys
import io
import math
import re
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from forgetless.forgetting import Interval
from forgetless.protection import PROTECTIONS

INK, QUIET, GRID, BAND = "#1A1A1A", "#5A5A5A", "#E4E4E4", "#DCE8F2"
_WIDTH = 9.0  # inches: 900 pixels at 100 dpi
FONT: dict[str, Any] = {"fontfamily": "DejaVu Sans", "color": INK}
MARK: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 9.5}
SEED: dict[str, Any] = {"marker": "o", "s": 14, "facecolor": "white", "linewidth": 1.0, "zorder": 5}


def colour(protection: str) -> str:
    """The colour of a protection: its own, or of a hue that its name decides; what is not there any more is quiet."""
    if protection not in PROTECTIONS:
        return QUIET
    hue = zlib.crc32(protection.encode()) / 2**32
    return PROTECTIONS[protection].colour or to_hex(colorsys.hls_to_rgb(hue, 0.4, 0.65))


def colours(labels: Mapping[str, str]) -> list[Patch]:
    """What the colours of protections mean in a legend: protection → its label."""
    return [Patch(color=colour(protection), label=label) for protection, label in labels.items()]


def grid(titles: Sequence[str], columns: int, height: float, share: str) -> tuple[Figure, list[Axes]]:
    """A figure, its rows of a height in inches, and one styled axes per title, filled row by row.

    With `share` (`x`, `y` or `both`) axes have the same limits, and numbers at the outer panels only; with `none`
    each panel has its own.
    """
    rows = math.ceil(len(titles) / columns)
    figure = Figure(figsize=(_WIDTH, rows * height + 0.9), layout="constrained", facecolor="white", dpi=100)
    share_x, share_y = share in {"x", "both"}, share in {"y", "both"}
    found = figure.subplots(rows, columns, squeeze=False, sharey=share_y and "all", sharex=share_x and "all")
    for ax in found.flat[len(titles) :]:
        ax.remove()
    axes: list[Axes] = list(found.flat[: len(titles)])
    for i, ax in enumerate(axes):
        ax.set_facecolor("white")
        for name, spine in ax.spines.items():
            spine.set_visible(name in {"left", "bottom"})
            spine.set_color(QUIET)
        ax.grid(visible=True, color=GRID, linewidth=0.8)
        ax.set_axisbelow(True)
        ax.tick_params(
            colors=QUIET,
            labelcolor=INK,
            labelsize=10,
            labelfontfamily="DejaVu Sans",
            labelleft=i % columns == 0 or share in {"x", "none"},
            labelbottom=i + columns >= len(titles) or share == "none",
        )
        ax.set_title(titles[i], loc="left", fontsize=10.5, pad=7, **FONT)
    return figure, axes


def line(label: str, **style: Any) -> Line2D:
    """A line or a mark in a legend."""
    return Line2D([], [], label=label, **style)


def finish(
    figure: Figure,
    title: str,
    x: str = "",
    y: str = "",
    lines: Sequence[Artist] = (),
    style: Sequence[Artist] = (),
) -> None:
    """What stands around the panels.

    The title is a sentence from the left; a range such as `0.3 to 7.6` is not broken. Axes that show numbers, the left
    ones and the lowest ones, are called `x` and `y`. Below, legends: what the colours mean at the left, what the line
    styles mean at the right.
    """
    whole_ranges = re.sub(r"(?<=\d) (to) (?=[−\d])", "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", title)
    text = "\n".join(textwrap.wrap(whole_ranges, 88))
    figure.suptitle(text, x=0.008, ha="left", fontsize=12.5, fontweight="bold", linespacing=1.3, **FONT)
    for ax in figure.axes:
        if x and ax.xaxis.get_tick_params()["labelbottom"]:
            ax.set_xlabel(x, fontsize=10, **FONT)
        if y and ax.yaxis.get_tick_params()["labelleft"]:
            ax.set_ylabel(y, fontsize=10, **FONT)
    rows = max(len(style), math.ceil(len(lines) / (2 if style else 4)))
    sides: tuple[tuple[Sequence[Artist], Literal["outside lower left", "outside lower right"]], ...] = (
        (lines, "outside lower left"),
        (style, "outside lower right"),
    )
    for handles, place in sides:
        if handles:
            figure.legend(
                handles=handles,
                loc=place,
                ncols=math.ceil(len(handles) / rows),
                frameon=False,
                labelcolor=INK,
                prop={"family": "DejaVu Sans", "size": 10},
                columnspacing=1.8,
                borderaxespad=0.3,
            )


def percent_axis(ax: Axes, limits: tuple[float, float]) -> None:
    """A y axis for accuracies, that goes little beyond what is possible."""
    ax.set_ylim(max(limits[0], -2.0), min(limits[1], 101.5))
    ax.yaxis.set_major_locator(MaxNLocator(5))


def draw_interval(
    ax: Axes, estimate: Interval, at: float, limits: tuple[float, float], *, vertical: bool, shade: str = INK
) -> None:
    """The interval as a line; an arrowhead where it goes on beyond the axis."""
    if estimate.low is None or estimate.high is None:
        return
    ends = (max(estimate.low, limits[0]), min(estimate.high, limits[1]))
    line = ((at, at), ends) if vertical else (ends, (at, at))
    ax.plot(*line, color=shade, linewidth=1.2, zorder=4, gid="interval", solid_capstyle="butt")
    for beyond, end, heads in ((estimate.low < limits[0], ends[0], "v<"), (estimate.high > limits[1], ends[1], "^>")):
        if beyond:
            where = ((at,), (end,)) if vertical else ((end,), (at,))
            ax.plot(*where, marker=heads[0 if vertical else 1], color=shade, markersize=5, clip_on=False, zorder=4)


def limits_of(values: Sequence[float], least: float | None = 0.0) -> tuple[float, float]:
    """An axis that holds every value, with some room; one that starts at `least`, if given, and holds a point of it."""
    low, high = min(values), max(values)
    if least is not None:
        low, high = min(low, least), max(high, least + 1.0)
    room = 0.08 * max(high - low, 1.0)
    return (low - room if low != least else low - 0.25 * room), high + room


def spread(count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Offsets across the bar, so that seeds with equal values show side by side."""
    return np.linspace(-0.2, 0.2, count) if count > 1 else np.zeros(1)


def data_uri(figure: Figure) -> str:
    """The figure as SVG in a data URI: sharp at any size, and apart from the page's other identifiers and styles."""
    text = io.StringIO()
    # Without these, identifiers are random and the file carries the date.
    with mpl.rc_context({"svg.hashsalt": "forgetless", "svg.fonttype": "path"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(text.getvalue().encode()).decode()


def picture(figure: Figure, caption: str) -> dict[str, str]:
    """A figure as the page shows it."""
    return {"source": data_uri(figure), "caption": caption}
