"""The picture of a comparison: forgetting against the quality of what is selected."""

import itertools
from collections.abc import Sequence

from matplotlib.figure import Figure

from forgetless.comparison import Measure, Row
from forgetless.comparison.result import ComparisonResult
from forgetless.errors import InputError
from forgetless.forgetting import Interval
from forgetless.report.canvas import FONT, INK, QUIET, colour, colours, draw_interval, finish, grid, line
from forgetless.report.comparison.findings import headline_sentences, in_per_cent, quality_name, scale_of
from forgetless.report.formats import label

_MARKERS = "osD^vP*X"


def forgetting_against_quality(result: ComparisonResult) -> Figure:
    """Mean forgetting against the mean quality of what is selected: a point per row, with 95 % intervals.

    Better is up and to the left. A strategy that trains no shared weights, and so forgets nothing, is a line.

    Raises:
        InputError: If no row has both.
    """
    axes = (Measure.FORGETTING, Measure.FOUND_MEAN)
    points = {row: tuple(_estimate(result, row, measure) for measure in axes) for row in result.ranked}
    if not any(x and y for x, y in points.values()):
        raise InputError("Expected a finished search to draw, but got none. Finish one first.")
    markers = dict(zip(result.config.strategy_names, itertools.cycle(_MARKERS), strict=False))
    figure, (ax,) = grid([""], 1, 4.2, "x")
    drawn: list[Row] = []
    limits = [_limits([point[i] for point in points.values() if point[i]]) for i in (0, 1)]
    for row, (x, y) in points.items():
        shade = colour_of(row)
        if x is not None and y is not None:
            draw_interval(ax, x, y.mean, limits[0], vertical=False, shade=shade)
            draw_interval(ax, y, x.mean, limits[1], vertical=True, shade=shade)
            ax.plot(x.mean, y.mean, marker=markers[row.strategy], color=shade, markersize=8, zorder=5, gid=str(row))
            drawn.append(row)
        elif y is not None and not row.is_search:
            ax.axhline(y.mean, color=QUIET, linewidth=1.2, linestyle=(0, (4, 2)), zorder=2, gid=str(row))
            at = (1, y.mean)
            ax.annotate(row.strategy, at, xycoords=("axes fraction", "data"), ha="right", va="bottom", **FONT)
    ax.axvline(0, color=INK, linewidth=0.9, zorder=1.5)
    ax.set_xlim(*limits[0])
    ax.set_ylim(*(reversed(limits[1]) if result.lower_is_better(Measure.FOUND_MEAN) else limits[1]))
    shapes = [
        line(strategy, color=QUIET, marker=markers[strategy], linestyle="", markersize=7)
        for strategy in dict.fromkeys(row.strategy for row in drawn)
    ]
    finish(
        figure,
        headline_sentences(result)[0].rstrip("."),
        f"forgetting err₂ − err₁, {result.unit.name}",
        f"{quality_name(result)} of what is selected{in_per_cent(result)}",
        colours({row.protection: label(row.protection) for row in drawn}),
        shapes,
    )
    return figure


def _estimate(result: ComparisonResult, row: Row, measure: Measure) -> Interval | None:
    interval, scale = result.interval(row, measure), scale_of(result, measure)
    if interval is None:
        return None
    low, high = (None if end is None else scale * end for end in (interval.low, interval.high))
    return Interval(scale * interval.mean, low, high)


def _limits(estimates: Sequence[Interval | None]) -> tuple[float, float]:
    """An axis that holds every interval, with some room."""
    ends = [end for e in estimates if e is not None for end in (e.mean, e.low, e.high) if end is not None]
    room = 0.08 * (max(ends) - min(ends)) or 0.5
    return min(ends) - room, max(ends) + room


def colour_of(row: Row) -> str:
    """That of its protection; quiet for what searches nothing."""
    return colour(row.protection) if row.is_search else QUIET
