"""The pictures of a two-model run, from its records alone.

Every function takes the result, with all or some of the runs asked for, and returns a new `matplotlib.figure.Figure`,
9 inches wide, with a panel per number of shared layers and convergence; without runs it raises `InputError`. pyplot and
the global settings are left alone. A protection has the same colour in every picture. Where a protection was run at
several α, the pictures other than `trade_off` show the one that `chosen_strength` picks on validation data, and the
control arm that is matched to it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from forgetless.errors import InputError
from forgetless.experiments.two_model import TwoModelResult
from forgetless.experiments.two_model.selection import Group, Panel
from forgetless.forgetting import Interval, mean_interval
from forgetless.options import number
from forgetless.protection import BASELINE, PROTECTIONS, control_of, is_control
from forgetless.report import canvas, formats
from forgetless.report.sentences import with_and_without
from forgetless.report.two_model.shown import Shown, panel_name

_MOST_COLUMNS = 3
_MODELS = (("accuracy_a_after", "-"), ("accuracy_b", "--"))
"""What is drawn of A and of B against the strength, and the line's style."""


def accuracy_curves(result: TwoModelResult) -> Figure:
    """Test accuracy of A and of the model in training while B (and later models) train.

    Figures 1 and 3 of arXiv:1902.08232: one panel per number of shared layers and convergence of A. Lines are means
    over seeds, bands their least and greatest; A is solid with a band, the model in training dashed without. The
    dotted line is A's accuracy before, averaged over all runs of the panel.
    """
    shown = _shown(result)
    figure, axes = _grid(shown, height=(4.6, 3.5, 2.9), shared="y")
    curves = [curve for run in result.runs for curve in (run.curve.accuracy_a, run.curve.accuracy_b)]
    limits = canvas.limits_of([100 * value for curve in curves for value in curve], least=None)
    for ax, panel in axes:
        here = [run for run in result.runs if panel.holds(run)]
        before = 100 * np.mean([run.accuracy_a_before for run in here])
        ax.axhline(float(before), color=canvas.INK, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1.5, gid="before")
        found = shown.groups(panel)
        for i, (group, width) in enumerate(zip(found, _widths(found), strict=True)):
            _curves(ax, group, canvas.colour(group.protection), width, order=2 + i)
        _mark_models(ax, shown)
        ax.set_xlim(0, max(run.curve.iteration[-1] for run in here))
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        canvas.percent_axis(ax, limits)
    dashed = f"the model in training ({shown.later})" if shown.is_chain else "B"
    style: list[Artist] = [
        canvas.line("A", color=canvas.QUIET, linewidth=2.0),
        canvas.line(dashed, color=canvas.QUIET, linewidth=1.3, linestyle="--"),
        canvas.line("A before", color=canvas.INK, linewidth=0.9, linestyle=(0, (1, 2))),
    ]
    title = f"While {shown.later} train{'' if shown.is_chain else 's'}, A {_losses(shown)}"
    at = f"training iterations of {shown.later}"
    canvas.finish(figure, title, at, "test accuracy, %", canvas.colours(shown.labels), style)
    return figure


def forgetting_bars(result: TwoModelResult) -> Figure:
    """Points of test accuracy that A loses under each protection: mean over seeds, 95 % interval, single seeds."""
    shown = _shown(result)
    arms = list(shown.labels)
    bar = 0.34 * len(arms)
    figure, axes = _grid(shown, height=(bar + 1.0, bar + 0.8, bar + 0.8), shared="both")
    limits = canvas.limits_of([value for group in shown.groups() for value in group.values("forgetting")])
    for ax, panel in axes:
        for group in shown.groups(panel):
            y = arms.index(group.protection)
            mean = _bar(ax, group.protection, group.values("forgetting"), y, (0.62, 1.0), limits, vertical=False)
            # Beside the panel, where no bar, dot or interval can cover it.
            ax.text(1.03, y, formats.points(mean / 100), transform=ax.get_yaxis_transform(), va="center", **canvas.FONT)
        ax.axvline(0, color=canvas.INK, linewidth=0.9, zorder=3)
        ax.set_xlim(*limits)
        ax.set_ylim(len(arms) - 0.5, -0.5)
        ax.set_yticks(range(len(arms)), shown.labels.values())
        ax.tick_params(axis="y", length=0, pad=9, labelcolor=canvas.INK)
        ax.grid(visible=False, axis="y")
    canvas.finish(figure, _bars_title(shown), "points of accuracy A lost")
    return figure


def trade_off(result: TwoModelResult, protection: str | None = None) -> Figure:
    """A's and B's test accuracy at the end against the strength (α, tolerance): stability against plasticity.

    Means over seeds with 95 % intervals and single seeds; the unprotected and the frozen arm as horizontal lines.
    With a single α there is one point, and the picture says that more are needed.

    Args:
        result: Runs, all or some of those asked for.
        protection: The protection whose strength varies; that which sentences are about if None.

    Returns:
        The figure: a panel per number of shared layers and convergence; α on a log axis, with 0 to the left of it.

    Raises:
        InputError: If there are no runs of that protection.
    """
    shown = _shown(result)
    protection = protection or shown.main or BASELINE
    control = control_of(protection)
    strengths, chosen = shown.strengths.get(protection, []), shown.chosen.get(protection)
    panels = [panel for panel in shown.panels if strengths and shown.along(panel, protection, strengths)]
    if not panels:
        raise InputError(f"Expected runs with a strength α under {protection!r}, but got none. Run that protection.")
    # The arms without a strength, controls apart, are horizontal lines.
    levels = [n for n in shown.ran if not PROTECTIONS[n].has_strength() and not is_control(n)]
    drawn = [name for name in (BASELINE, control, *levels, protection) if name in shown.ran]
    figure, axes = _grid(shown, height=(4.4, 3.4, 2.9), shared="y", panels=panels)
    along = {(p, name): shown.along(p, name, strengths) for p in panels for name in (*levels, protection, control)}
    everything = [group for (_, name), found in along.items() if name != control for group in found]
    limits = canvas.limits_of([v for g in everything for key, _ in _MODELS for v in g.values(key)], least=None)
    for ax, panel in axes:
        _strength_axis(ax, strengths)
        for group in (group for name in levels for group in along[panel, name]):
            for key, dash in _MODELS:
                shade, gid = canvas.colour(group.protection), group.protection
                ax.axhline(100 * group.mean(key), color=shade, linewidth=1.3, linestyle=dash, zorder=2, gid=gid)
        for key, dash in _MODELS:
            _against_strength(ax, along[panel, protection], key, dash, limits)
            _against_strength(ax, along[panel, control], key, dash, None)
        if len(strengths) > 1 and chosen is not None:
            ax.axvline(chosen, color=canvas.BAND, linewidth=7, zorder=0.5)
        canvas.percent_axis(ax, limits)
    colours = canvas.colours({name: formats.arm_label(name) for name in drawn})
    here = [group for panel in panels for group in shown.groups(panel) if group.protection == protection]
    kept, learned = (formats.span(g.mean(key) for g in here) for key, _ in _MODELS)
    symbol, several = PROTECTIONS[protection].symbol, len(strengths) > 1
    told = f"At {symbol} = {number(chosen or 0)}, A ends at {kept} % and B at {learned} %"
    title = told if several else f"{told}; a trade-off takes several values of {symbol}"
    axis = f"{PROTECTIONS[protection].axis()} of {formats.label(protection)}"
    style = _strength_legend(protection, several=several)
    canvas.finish(figure, title, axis, "test accuracy at the end, %", colours, style)
    return figure


def chain_forgetting(result: TwoModelResult) -> Figure:
    """Points of test accuracy that each model of a chain lost by the end, per protection.

    Mean over seeds with 95 % interval and single seeds. The last model is left out: nothing is trained after it.
    """
    shown = _shown(result)
    models, order = shown.letters[:-1], list(shown.labels)
    everything = [model.forgetting for g in shown.groups() for run in g.runs for model in run.models]
    figure, axes = _grid(shown, height=(3.8, 3.2, 2.8), shared="y")
    limits, width = canvas.limits_of([100 * value for value in everything]), 0.8 / len(order)
    for ax, panel in axes:
        for group in shown.groups(panel):
            for j in range(len(models)):
                x = j + (order.index(group.protection) - (len(order) - 1) / 2) * width
                values = [100 * run.models[j].forgetting for run in group.runs]
                _bar(ax, group.protection, values, x, (0.86 * width, width), limits, vertical=True)
        ax.axhline(0, color=canvas.INK, linewidth=0.9, zorder=3)
        ax.set_ylim(*limits)
        ax.set_xlim(-0.5, len(models) - 0.5)
        ax.set_xticks(range(len(models)), models)
        ax.tick_params(axis="x", length=0, pad=7, labelcolor=canvas.INK)
        ax.grid(visible=False, axis="x")
    free, kept = (
        [g.mean("mean_forgetting") for g in shown.groups() if g.protection == name] for name in (BASELINE, shown.main)
    )
    told = f"The models before the last lose {formats.span(free or kept)} points on average"
    how = f", {formats.span(kept)} {formats.with_label(shown.main)}" if free and kept and shown.main else ""
    title = told + (" without protection" if free else "") + how
    colours = canvas.colours(shown.labels)
    canvas.finish(figure, title, "model, in the order of training", "forgetting, points", colours)
    return figure


# What the figures are made of


def _shown(result: TwoModelResult) -> Shown:
    if not result.runs:
        raise InputError("Expected at least one finished run to draw, but got none. Finish a run first.")
    return Shown(result)


def _grid(
    shown: Shown, height: tuple[float, float, float], shared: str, panels: Sequence[Panel] | None = None
) -> tuple[Figure, list[tuple[Axes, Panel]]]:
    """A figure with one styled axes per panel, row by row, heights in inches for one, two, and more columns."""
    panels, convergences = panels or shown.panels, shown.result.config.chain.convergence
    if len({panel.convergence for panel in panels}) > _MOST_COLUMNS:
        # Stable, so that the panels of one convergence keep their order.
        panels = sorted(panels, key=lambda panel: convergences.index(panel.convergence))
    columns = _columns(panels)
    names = [panel_name(panel, panels) for panel in panels]
    titles = names if columns == 1 else [name.replace(", ", "\n") for name in names]
    figure, axes = canvas.grid(titles, columns, height[columns - 1], shared)
    return figure, list(zip(axes, panels, strict=True))


def _columns(panels: Sequence[Panel]) -> int:
    """Columns by convergence, or by shared layers if that is narrower; where only one varies, as many as fit."""
    by_convergence, by_shared = (len({getattr(panel, name) for panel in panels}) for name in ("convergence", "shared"))
    if by_convergence > 1 and by_shared > 1 and len(panels) == by_convergence * by_shared:
        columns = by_convergence if by_convergence <= _MOST_COLUMNS else by_shared
        if columns <= _MOST_COLUMNS:
            return columns
    return 2 if len(panels) == 4 else min(len(panels), _MOST_COLUMNS)


def _widths(found: Sequence[Group]) -> list[float]:
    """Line widths for A's curves: where a later line covers an earlier one, the earlier is wider, so that both show."""
    means = [np.mean([run.curve.accuracy_a for run in group.runs], axis=0) for group in found]
    widths: list[float] = []
    for i in reversed(range(len(found))):
        later = zip(widths, means[i + 1 :], strict=True)
        covered = [width for width, other in later if np.mean(np.abs(means[i] - other) < 0.01) > 0.5]
        widths.insert(0, max(covered, default=0.6) + 1.4)
    return widths


def _curves(ax: Axes, group: Group, shade: str, width: float, order: float) -> None:
    """One protection's curves."""
    iterations = np.asarray(group.runs[0].curve.iteration)
    a, b = (100 * np.asarray([getattr(run.curve, key) for run in group.runs]) for key in ("accuracy_a", "accuracy_b"))
    if len(a) > 1:
        ax.fill_between(iterations, a.min(0), a.max(0), color=shade, alpha=0.13, linewidth=0, zorder=order - 0.5)
    ax.plot(iterations, a.mean(0), color=shade, linewidth=width, zorder=order, gid=f"{group.protection} A")
    # In a chain the dashed line is another model from each model's first step on: it is not joined.
    starts = group.runs[0].starts
    mean = b.mean(0)
    for first, last in zip(starts, [*starts[1:], len(iterations)], strict=True):
        ax.plot(
            iterations[first:last],
            mean[first:last],
            color=shade,
            linewidth=1.3,
            linestyle=(0, (4, 1.6)),
            zorder=order + 0.25,
            gid=f"{group.protection} B",
        )


def _mark_models(ax: Axes, shown: Shown) -> None:
    """Say which model trains when, where there is more than one."""
    if not shown.is_chain:
        return
    models = shown.letters[1:]
    each = shown.result.runs[0].curve.iteration[-1] / len(models)
    for j, letter in enumerate(models):
        if j:
            ax.axvline(j * each, color=canvas.QUIET, linewidth=0.8, zorder=1.2)
        ax.text(
            (j + 0.5) * each, 0.02, f"{letter} trains", transform=ax.get_xaxis_transform(), **canvas.MARK, **canvas.FONT
        )


def _bar(
    ax: Axes,
    protection: str,
    values: Sequence[float],
    at: float,
    widths: tuple[float, float],
    limits: tuple[float, float],
    *,
    vertical: bool,
) -> float:
    """Mean, interval and single seeds; widths of the bar, and of the room for the seeds. Returns the mean."""
    estimate, shade = mean_interval(values), canvas.colour(protection)
    draw = ax.bar if vertical else ax.barh
    draw(at, estimate.mean, widths[0], color=shade, alpha=0.85, zorder=2, gid=protection)
    canvas.draw_interval(ax, estimate, at, limits, vertical=vertical)
    places = at + widths[1] * canvas.spread(len(values))
    ax.scatter(*((places, values) if vertical else (values, places)), edgecolor=shade, **canvas.SEED)
    return estimate.mean


def _strength_legend(protection: str, *, several: bool) -> list[Artist]:
    mark: dict[str, Any] = {"color": canvas.QUIET, "linewidth": 1.8, "marker": "o", "markersize": 5}
    meaning: list[Artist] = [
        canvas.line("A", **mark),
        canvas.line("B", linestyle="--", mfc="white", **mark),
    ]
    if several:
        chosen = f"{PROTECTIONS[protection].symbol} chosen on validation data"
        meaning.append(canvas.line(chosen, color=canvas.BAND, linewidth=7))
    return meaning


def _strength_axis(ax: Axes, strengths: Sequence[float]) -> None:
    """A log axis; 0 has a place one decade to the left of the least positive strength."""
    positive = [strength for strength in strengths if strength > 0]
    if 0 in strengths and positive:
        ax.set_xscale("symlog", linthresh=positive[0], linscale=1.0)
        ax.set_xlim(-0.35 * positive[0], 3 * positive[-1])
    elif positive:
        ax.set_xscale("log")
        ax.set_xlim(positive[0] / 3, 3 * positive[-1])
    every = math.ceil(len(strengths) / 7)
    ax.set_xticks(strengths[::every], [number(strength) for strength in strengths[::every]])
    ax.set_xticks([], minor=True)


def _against_strength(
    ax: Axes, found: Sequence[Group], key: str, dash: str, limits: tuple[float, float] | None
) -> None:
    """One model's accuracy over the strength; with points and intervals, unless the axis limits are left out."""
    if not found:
        return
    protection, shade = found[0].protection, canvas.colour(found[0].protection)
    at = [float(group.strength or 0) for group in found]
    estimates = [group.estimate(key) for group in found]
    means = [estimate.mean for estimate in estimates]
    style: dict[str, Any] = {"color": shade, "linestyle": dash, "marker": "o", "gid": f"{protection} {key}"}
    if limits is None:
        ax.plot(at, means, linewidth=1.3, markersize=3, zorder=2.5, **style)
        return
    fill = shade if key == "accuracy_a_after" else "white"
    ax.plot(at, means, linewidth=1.8, markersize=6, markerfacecolor=fill, zorder=4.5, **style)
    for x, estimate in zip(at, estimates, strict=True):
        if estimate.low is not None and estimate.high is not None:
            possible = Interval(estimate.mean, max(estimate.low, 0.0), min(estimate.high, 100.0))
            canvas.draw_interval(ax, possible, x, limits, vertical=True, shade=shade)


def _losses(shown: Shown) -> str:
    """Such as `loses 20.0 to 39.2 points without protection and 0.3 with weight plasticity`."""
    amounts = []
    for name in dict.fromkeys((BASELINE, shown.main or shown.groups()[0].protection)):
        lost = [group.mean("forgetting") for group in shown.groups() if group.protection == name]
        if lost:
            gained = formats.points(max(lost)).startswith("−")  # what reads as 0.0 is no gain
            amount = formats.span([-value for value in lost] if gained else lost)
            amounts.append(("gains" if gained else "loses", "none" if amount == "0.0" else amount, name))
    return with_and_without(amounts, "points")


def _bars_title(shown: Shown) -> str:
    """How much of the forgetting the main protection prevents, over panels."""
    pairs = [pair[1].summary.reduction for pair in shown.pairs.values() if pair]
    if not pairs or shown.main is None:
        return f"While {shown.later} trains, A {_losses(shown)}"
    shares = sorted(found.mean for found in pairs if found is not None)
    if not shares:
        return "Without protection A does not forget: there is no forgetting to reduce"
    some = "" if len(shares) == len(pairs) else f", where there is any ({len(shares)} of {len(pairs)} panels)"
    if shares[-1] < 0:
        return f"With {formats.label(shown.main)} A forgets more than without protection{some}"
    low, high = (formats.share(min(value, 1.0)) for value in (shares[0], shares[-1]))
    return f"{formats.label(shown.main).capitalize()} prevents {formats.ends(low, high)} % of A's forgetting{some}"
