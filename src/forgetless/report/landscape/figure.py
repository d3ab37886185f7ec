"""The plane of one seed, a panel per arm: losses, the Fisher ellipse, and where the shared weights went."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from numpy.typing import NDArray

from forgetless.errors import InputError
from forgetless.experiments.landscape.plane import ellipse
from forgetless.experiments.landscape.records import ArmRecord, Numbers, SurfaceRecord
from forgetless.experiments.landscape.result import LandscapeResult
from forgetless.options import number
from forgetless.report.canvas import FONT, INK, colour, finish, grid, line
from forgetless.report.formats import arm_label, signed
from forgetless.report.landscape.findings import finding

_MOST_COLUMNS = 3
_WIDTH_OF_PANELS = 8.2  # inches, for all columns of a row
_GREYS = ("#FFFFFF", "#F0F0F0", "#E0E0E0", "#CFCFCF", "#BCBCBC", "#A8A8A8", "#939393")
_LEVELS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # nats above A's loss at its own weights
_LEVELS_B = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
_GREEN, _PURPLE, _DASHES = "#007A5E", "#9A2A86", (0, (4, 2))

Grid = NDArray[np.float64]


def landscape_figure(result: LandscapeResult, seed: int | None = None) -> Figure:
    """Where each arm's training of B moved the shared weights, on one plane.

    Shades of grey are A's loss. Dashed, the ellipses on which the Fisher information expects it to have risen by
    `rise` and by a tenth of it; solid, where it has risen by `rise`. Green contours are B's loss, with B's own weights
    as they are at the end of the panel's arm. The path of the panel's arm is thick, those of the others are thin.

    Args:
        result: Records, all or some of those asked for.
        seed: Whose plane; the first that is finished if None.

    Raises:
        InputError: If no arm of the seed is finished.
    """
    seed = next((arm.seed for arm in result.arms), None) if seed is None else seed
    arms = [arm for arm in result.arms if arm.seed == seed]
    if not arms or seed is None or seed not in result.surfaces:
        raise InputError("Expected at least one finished arm to draw, but got none. Finish a run first.")
    surface, rise = result.surfaces[seed], result.config.slice.rise
    columns = min(len(arms), _MOST_COLUMNS)
    figure, axes = grid([_title(arm) for arm in arms], columns, 1.0, "both")
    figure.set_figheight(math.ceil(len(arms) / columns) * _height_of_row(surface, columns) + 1.25)
    lines = []
    for ax, arm in zip(axes, arms, strict=True):
        ax.set(xlim=(surface.x[0], surface.x[-1]), ylim=(surface.y[0], surface.y[-1]), aspect="equal")
        ax.grid(visible=False)
        lines += [_draw_a(ax, surface, rise), *_draw_b(ax, surface, arm)]
        for other in arms:
            _draw_path(ax, other, is_own=other is arm)
        ax.plot(0, 0, marker="o", color="white", markeredgecolor=INK, markersize=6, zorder=8)
        ax.annotate("A", (0, 0), (-5, -5), textcoords="offset points", ha="right", va="top", zorder=8, **FONT)
    whose = f"Seed {seed}: " if result.config.run.seeds > 1 else ""
    title = whose + finding(dataclasses.replace(result, arms=arms))
    paths = [line(_name(arm), color=colour(arm.protection), linewidth=2.2) for arm in arms]
    finish(figure, title, "first direction, ‖Δθ‖", "second direction, ‖Δθ‖", paths, _styles(rise))
    figure.draw_without_rendering()  # labels are placed by the size that the panels have in the end
    for drawn in lines:
        drawn.axes.clabel(drawn, fmt=_label, fontsize=8, inline_spacing=2)
    return figure


def _label(level: float) -> str:
    return number(round(level, 6))


def _name(arm: ArmRecord) -> str:
    return arm_label(arm.protection, arm.strength)


def _title(arm: ArmRecord) -> str:
    outcome = "diverged" if arm.is_diverged else f"A’s loss {signed(arm.measures.rise)} nats"
    return f"{_name(arm)}\n{outcome}"


def _height_of_row(surface: SurfaceRecord, columns: int) -> float:
    """As high as the plane is at the width that a panel has, with its title and its axis."""
    ratio = (surface.y[-1] - surface.y[0]) / (surface.x[-1] - surface.x[0])
    return _WIDTH_OF_PANELS / columns * ratio + 0.95


def _draw_a(ax: Axes, surface: SurfaceRecord, rise: float) -> QuadContourSet:
    """A's loss in shades, the line on which it has risen by so much, and the ellipses on which that is expected."""
    loss = _array(surface.loss_a) - (surface.loss_a_before or 0.0)
    ax.contourf(surface.x, surface.y, loss, levels=[-np.inf, *_LEVELS, np.inf], colors=_GREYS, zorder=1)
    for level, width in ((rise / 10, 1.1), (rise, 1.9)):
        style: dict[str, Any] = {"color": _PURPLE, "linewidth": width, "linestyle": _DASHES, "gid": "ellipse"}
        ax.plot(*ellipse(surface.form, level).T, **style, zorder=4, scalex=False, scaley=False)
    return ax.contour(surface.x, surface.y, loss, levels=[rise], colors=[INK], linewidths=1.7, zorder=3)


def _draw_b(ax: Axes, surface: SurfaceRecord, arm: ArmRecord) -> list[QuadContourSet]:
    """Contours of B's loss; none of one that is finite nowhere."""
    loss = _array(arm.loss_b_surface)
    if not np.isfinite(loss).any():
        return []
    levels = [level for level in _LEVELS_B if np.nanmin(loss) < level < np.nanmax(loss)]
    if not levels:
        return []
    return [ax.contour(surface.x, surface.y, loss, levels=levels, colors=[_GREEN], linewidths=0.9, zorder=2)]


def _draw_path(ax: Axes, arm: ArmRecord, *, is_own: bool) -> None:
    x, y = _row(arm.x), _row(arm.y)
    shade = colour(arm.protection)
    if is_own:
        ax.plot(x, y, color="white", linewidth=4.5, zorder=5)
        ax.plot(x, y, color=shade, linewidth=2.2, zorder=6, gid=arm.protection)
        ax.plot(x[-1], y[-1], color=shade, marker="s", markersize=8, markeredgecolor="white", zorder=7)
    else:
        ax.plot(x, y, color=shade, linewidth=1.2, alpha=0.7, zorder=4)


def _styles(rise: float) -> list[Artist]:
    by = f"{number(rise / 10)} (thin) and {number(rise)} (thick)"
    expected = f"Fisher ellipses: A’s loss expected to rise by {by}"
    return [
        line(expected, color=_PURPLE, linewidth=1.9, linestyle=_DASHES),
        line(f"A’s loss has risen by {number(rise)}; darker: it is higher", color=INK, linewidth=1.7),
        line("B’s loss, nats", color=_GREEN, linewidth=0.9),
    ]


def _array(rows: Sequence[Numbers]) -> Grid:
    return np.array([_row(row) for row in rows])


def _row(values: Numbers) -> Grid:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
