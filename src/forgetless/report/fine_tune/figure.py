"""Old loss against new loss: a panel for each new text, a curve for each method over its strengths."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from forgetless.errors import InputError
from forgetless.experiments.fine_tune.records import MethodSummary
from forgetless.experiments.fine_tune.result import FineTuneResult
from forgetless.options import number
from forgetless.protection import BASELINE
from forgetless.report import canvas, formats
from forgetless.report.fine_tune.findings import (
    EVIDENCE,
    Method,
    compared,
    headline,
    is_budget,
    method_of,
    targets,
    text_name,
)
from forgetless.tasks.base import decimal

_MARKERS = {None: "o", "own-samples": "o", "old-data": "s", "new-inputs": "^"}
_DASHES: dict[str | None, Any] = {None: "-", "own-samples": "-", "old-data": (0, (4, 1.6)), "new-inputs": (0, (1, 1.4))}
# An arm that loses this many times what the unprotected one loses stands at the axis's end.
_FAR = 1.5
_LABEL: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8.5, "zorder": 7, "fontfamily": "DejaVu Sans"}
_START: dict[str, Any] = {"color": canvas.INK, "markerfacecolor": "white", "markersize": 7}

Limits = tuple[float, float]


@dataclass(frozen=True)
class _Panel:
    """What one panel shows: its arms, the loss on the new text before, and the ends of its axes."""

    entries: list[MethodSummary]
    before: float
    x: Limits
    y: Limits

    def is_inside(self, entry: MethodSummary) -> bool:
        return entry.old_increase.mean <= self.x[1] and entry.new.mean <= self.y[1]

    def place(self, entry: MethodSummary) -> tuple[float, float]:
        """Where its point is: at the end of an axis that ends before it."""
        return min(entry.old_increase.mean, self.x[1]), min(entry.new.mean, self.y[1])


def frontier_figure(result: FineTuneResult) -> Figure:
    """What each method keeps and learns: lower and further to the left is better.

    Across, how much the loss on held-out old text has risen; up, the loss on held-out new text; both in nats per token,
    means over seeds. A curve is a method over its strengths. Arms that another one of their panel is better than on
    both texts are pale; the others are on the frontier, and have their strength and 95 % intervals.

    Args:
        result: Records, all or some of those asked for.

    Raises:
        InputError: If no run is finished.
    """
    found = targets(result)
    if not found:
        raise InputError("Expected at least one finished run to draw, but got none. Finish a run first.")
    columns = min(len(found), 2)
    entries = compared(result)
    panels = [_panel(result, [entry for entry in entries if entry.to == to]) for to in found]
    titles = [f"on {text_name(to)} (loss before: {decimal(p.before, 2)})" for to, p in zip(found, panels, strict=True)]
    figure, axes = canvas.grid(titles, columns, 4.8 if columns == 1 else 4.3, "none")
    for ax, panel in zip(axes, panels, strict=True):
        ax.set(xlim=panel.x, ylim=panel.y)
        _draw_frontier(ax, panel)
        for method in dict.fromkeys(map(method_of, panel.entries)):
            _draw_method(ax, panel, method)
        _draw_start(ax, panel)
    title = headline(result, in_title=True).rstrip(".")
    names = {entry.protection: formats.label(entry.protection) for entry in entries}
    old = text_name(result.config.texts.old)
    x, y = f"rise of the loss on {old}, nats per token", "loss on the new text, nats per token"
    canvas.finish(figure, title, x, y, canvas.colours(names), _styles(entries))
    figure.draw_without_rendering()  # labels are placed by the size that the panels have in the end
    for ax, panel in zip(axes, panels, strict=True):
        _label_frontier(ax, panel)
    return figure


def _panel(result: FineTuneResult, entries: list[MethodSummary]) -> _Panel:
    runs = [run for run in result.runs if run.to == entries[0].to]
    before = math.fsum(run.new_before for run in runs) / len(runs)
    free = [entry.old_increase.mean for entry in entries if entry.protection == BASELINE]
    budgets = [entry.strength for entry in entries if is_budget(entry.protection) and entry.strength]
    rises = [0.0, *budgets, *(entry.old_increase.mean for entry in entries)]
    far = _FAR * free[0] if free and free[0] > 0 else math.inf
    near = [entry.new.mean for entry in entries if entry.old_increase.mean <= far] or [before]
    # What knew much less before, or knows less in the end, would press the others together.
    lowest, highest = min(near), max(near)
    top = max(lowest, before) if before - highest <= 0.75 * (highest - lowest) else highest
    return _Panel(entries, before, _with_room([rise for rise in rises if rise <= far]), _with_room([top, *near], top))


def _with_room(values: Sequence[float], top: float = math.inf) -> Limits:
    """An axis that holds all values but those above `top`; below there is room for labels."""
    low, high = min(values), min(max(values), top)
    room = max(high - low, 0.02)
    return low - 0.14 * room, high + 0.08 * room


def _draw_frontier(ax: Axes, panel: _Panel) -> None:
    """Stairs through the arms that no other one is better than: what is above and to the right of them is dominated."""
    best = sorted(panel.place(entry) for entry in panel.entries if not entry.is_dominated)
    x, y = [best[0][0], *(at for at, _ in best), panel.x[1]], [panel.y[1], *(at for _, at in best), best[-1][1]]
    ax.plot(x, y, color=canvas.BAND, linewidth=6, drawstyle="steps-post", zorder=1.2, gid="frontier")


def _draw_method(ax: Axes, panel: _Panel, method: Method) -> None:
    """A curve, with a point for each strength; with its intervals if it is on the frontier."""
    entries = [entry for entry in panel.entries if method_of(entry) == method]
    entries.sort(key=lambda entry: entry.strength or 0.0)
    shade, (name, on) = canvas.colour(method[0]), method
    gid = f"{name} {on}" if on else name
    for one, other in itertools.pairwise(entries):
        is_pale = one.is_dominated or other.is_dominated
        style = {"color": pale(shade) if is_pale else shade, "linestyle": _DASHES.get(on, "-"), "linewidth": 1.5}
        ax.plot(*zip(panel.place(one), panel.place(other), strict=True), zorder=2 + (not is_pale), **style)
    for entry in entries:
        tone = pale(shade) if entry.is_dominated else shade
        x, y = panel.place(entry)
        marker = _MARKERS.get(on, "o") if panel.is_inside(entry) else ">" if x == panel.x[1] else "^"
        style = {"marker": marker, "markersize": 7, "markeredgecolor": "white", "clip_on": False}
        ax.plot(x, y, color=tone, zorder=3 if entry.is_dominated else 6, gid=gid, **style)
        if panel.is_inside(entry) and not entry.is_dominated:
            canvas.draw_interval(ax, entry.old_increase, y, panel.x, vertical=False, shade=tone)
            canvas.draw_interval(ax, entry.new, x, panel.y, vertical=True, shade=tone)
        if is_budget(name) and entry.strength:
            ax.axvline(entry.strength, color=shade, linewidth=1.1, linestyle=(0, (1, 2)), zorder=1.5, gid="budget")


def _draw_start(ax: Axes, panel: _Panel) -> None:
    """The model before fine-tuning, on the axis; an arrow where it is above the panel."""
    ax.axvline(0, color=canvas.QUIET, linewidth=0.8, zorder=1.1)
    marker = "o" if panel.before <= panel.y[1] else "^"
    ax.plot(0, min(panel.before, panel.y[1]), marker=marker, zorder=6, gid="before", clip_on=False, **_START)


def _label_frontier(ax: Axes, panel: _Panel) -> None:
    """Strengths of the arms on the frontier, below and to the left of them, where no arm can be; no text on another."""
    best = [entry for entry in panel.entries if not entry.is_dominated or entry.protection == BASELINE]
    placed: list[Bbox] = []
    for entry in sorted(best, key=lambda entry: (entry.protection != BASELINE, entry.old_increase.mean)):
        is_free = entry.protection == BASELINE
        text = formats.label(BASELINE) if is_free else formats.or_nothing(entry.strength)
        shade = canvas.colour(entry.protection)
        drawn = ax.annotate(text, panel.place(entry), (-5, -4), ha="right", va="top", color=shade, **_LABEL)
        drawn.set_path_effects([withStroke(linewidth=2, foreground="white")])
        box = drawn.get_window_extent()
        if any(box.overlaps(other) for other in placed):
            drawn.remove()
        else:
            placed.append(box)


def _styles(entries: Sequence[MethodSummary]) -> list[Artist]:
    """What the lines mean, of those that are there."""
    shade = canvas.QUIET
    found: list[Artist] = [
        canvas.line(f"sees {text}", color=shade, linestyle=_DASHES[on], marker=_MARKERS[on], linewidth=1.5)
        for on, text in EVIDENCE.items()
        if any(entry.on == on for entry in entries)
    ]
    found.append(canvas.line("frontier; pale: dominated", color=canvas.BAND, linewidth=6))
    found.append(canvas.line("before fine-tuning", linestyle="", marker="o", **_START))
    asked = sorted({entry.strength for entry in entries if is_budget(entry.protection) and entry.strength})
    if asked:
        told = f"budgets: {', '.join(map(number, asked))} nats"
        found.append(canvas.line(told, color=shade, linewidth=1.1, linestyle=(0, (1, 2))))
    return found


def pale(shade: str) -> str:
    """A colour for what is dominated: mostly white."""
    red, green, blue = (0.35 * part + 0.65 for part in to_rgb(shade))
    return to_hex((red, green, blue))
