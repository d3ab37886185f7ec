"""The pictures of a two-model run, from its records alone.

Every function takes the result and returns a new `matplotlib.figure.Figure`, 9 inches wide; pyplot and the global
settings are left alone. A protection has the same colour in every picture. Where a protection was run at several α,
the pictures other than `trade_off` show the one that `chosen_strength` picks on validation data, and the control arm
that is matched to it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from forgetless.errors import InputError
from forgetless.experiments.two_model import TwoModelResult
from forgetless.forgetting import Interval, mean_interval, reduction
from forgetless.options import number
from forgetless.protection import BASELINE, PROTECTIONS
from forgetless.report.canvas import (
    BAND,
    FONT,
    INK,
    MARK,
    QUIET,
    SEED,
    colour,
    draw_interval,
    grid_of_panels,
    label_outer_axes,
    limits_of,
    panels_to_draw,
    percent_axis,
    place_legends,
    spread,
    title_figure,
)
from forgetless.report.two_model.groups import (
    Group,
    Panel,
    chosen_strength,
    control_of,
    groups,
    is_control,
    label,
    later_models,
    listed,
    main_protection,
    mean_forgetting,
    points,
    share,
    span,
    strength_axis,
    symbol_of,
)


def accuracy_curves(result: TwoModelResult) -> Figure:
    """Test accuracy of A and of the model in training while B (and later models) train.

    Figures 1 and 3 of arXiv:1902.08232: one panel per number of shared layers and convergence of A. Lines are means
    over seeds, bands their least and greatest; A is solid with a band, the model in training dashed without. The
    dotted line is A's accuracy before, averaged over all runs of the panel.

    Args:
        result: Runs, all or some of those asked for.

    Returns:
        The figure.

    Raises:
        InputError: If there are no runs.
    """
    shown = panels_to_draw(result)
    figure, axes = grid_of_panels(shown, height=(4.6, 3.5, 2.9), share="y")
    curves = [run["curve"][key] for run in result.runs for key in ("accuracy_a", "accuracy_b")]
    limits = limits_of([100 * value for curve in curves for value in curve], least=None)
    for ax, panel in zip(axes, shown, strict=True):
        here = [run for run in result.runs if panel.holds(run)]
        before = 100 * np.mean([run["accuracy_a_before"] for run in here])
        ax.axhline(float(before), color=INK, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1.5, gid="before")
        found = groups(result, panel)
        for i, (group, width) in enumerate(zip(found, _widths(found), strict=True)):
            _curves(ax, group, colour(group.protection), width, order=2 + i)
        _mark_models(ax, result)
        ax.set_xlim(0, max(run["curve"]["iteration"][-1] for run in here))
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        percent_axis(ax, limits)
    letters = later_models(result)
    label_outer_axes(axes, f"training iterations of {listed(letters)}", "test accuracy, %")
    second = "B" if len(letters) == 1 else f"the model in training ({listed(letters)})"
    style: list[Artist] = [
        Line2D([], [], color=QUIET, linewidth=2.0, label="A"),
        Line2D([], [], color=QUIET, linewidth=1.3, linestyle="--", label=second),
        Line2D([], [], color=INK, linewidth=0.9, linestyle=(0, (1, 2)), label="A before"),
    ]
    _legend(figure, result, shown, style)
    title_figure(figure, f"While {listed(letters)} train{'s' if len(letters) == 1 else ''}, A {_losses(result, shown)}")
    return figure


def forgetting_bars(result: TwoModelResult) -> Figure:
    """Points of test accuracy that A loses under each protection: mean over seeds, 95 % interval, single seeds.

    Args:
        result: Runs, all or some of those asked for.

    Returns:
        The figure: a panel per number of shared layers and convergence.

    Raises:
        InputError: If there are no runs.
    """
    shown = panels_to_draw(result)
    found = {panel: groups(result, panel) for panel in shown}
    arms = list(dict.fromkeys((g.protection, g.label) for panel in shown for g in found[panel]))
    bar = 0.34 * len(arms)
    figure, axes = grid_of_panels(shown, height=(bar + 1.0, bar + 0.8, bar + 0.8), share="both")
    limits = limits_of([100 * value for panel in shown for g in found[panel] for value in g.values("forgetting")])
    for ax, panel in zip(axes, shown, strict=True):
        for group in found[panel]:
            y = arms.index((group.protection, group.label))
            shade, values = colour(group.protection), [100 * v for v in group.values("forgetting")]
            estimate = mean_interval(values)
            ax.barh(y, estimate.mean, 0.62, color=shade, alpha=0.85, zorder=2, gid=group.protection)
            draw_interval(ax, estimate, y, limits, vertical=False)
            ax.scatter(values, np.full(len(values), y + spread(len(values))), edgecolor=shade, **SEED)
            # Beside the panel, where no bar, dot or interval can cover it.
            ax.text(1.03, y, points(estimate.mean / 100), transform=ax.get_yaxis_transform(), va="center", **FONT)
        ax.axvline(0, color=INK, linewidth=0.9, zorder=3)
        ax.set_xlim(*limits)
        ax.set_ylim(len(arms) - 0.5, -0.5)
        ax.set_yticks(range(len(arms)), [label for _, label in arms])
        ax.tick_params(axis="y", length=0, pad=9, labelcolor=INK)
        ax.grid(visible=False, axis="y")
    label_outer_axes(axes, "points of accuracy A lost", "")
    title_figure(figure, _bars_title(result, shown))
    return figure


def trade_off(result: TwoModelResult, protection: str = "wpl") -> Figure:
    """A's and B's test accuracy at the end against the strength (α, tolerance): stability against plasticity.

    Means over seeds with 95 % intervals and single seeds; the unprotected and the frozen arm as horizontal lines.
    With a single α there is one point, and the picture says that more are needed.

    Args:
        result: Runs, all or some of those asked for.
        protection: The protection whose strength varies.

    Returns:
        The figure: a panel per number of shared layers and convergence; α on a log axis, with 0 to the left of it.

    Raises:
        InputError: If there are no runs of that protection.
    """
    strengths = sorted({run["strength"] for run in result.runs if run["protection"] == protection} - {None})
    shown = [panel for panel in panels_to_draw(result) if any(_at(result, panel, protection, a) for a in strengths)]
    if not shown:
        raise InputError(f"Expected runs with a strength α under {protection!r}, but got none. Run that protection.")
    figure, axes = grid_of_panels(shown, height=(4.4, 3.4, 2.9), share="y")
    chosen, control = chosen_strength(result, protection), control_of(protection)
    limits = limits_of(
        [
            100 * value
            for panel in shown
            for g in (
                _at(result, panel, name, a) for name in (protection, *_levels(result)) for a in (*strengths, None)
            )
            if g is not None
            for key in ("accuracy_a_after", "accuracy_b")
            for value in g.values(key)
        ],
        least=None,
    )
    for ax, panel in zip(axes, shown, strict=True):
        _strength_axis(ax, strengths)
        for name in _levels(result):
            if (level := _at(result, panel, name, None)) is not None:
                for key, dash in (("accuracy_a_after", "-"), ("accuracy_b", "--")):
                    value = 100 * mean_interval(level.values(key)).mean
                    ax.axhline(value, color=colour(name), linewidth=1.3, linestyle=dash, zorder=2, gid=name)
        for key, dash in (("accuracy_a_after", "-"), ("accuracy_b", "--")):
            _against_strength(ax, [_at(result, panel, protection, a) for a in strengths], key, dash, limits)
            if control is not None:
                _against_strength(ax, [_at(result, panel, control, a) for a in strengths], key, dash, None)
        if len(strengths) > 1 and chosen is not None:
            ax.axvline(chosen, color=BAND, linewidth=7, zorder=0.5)
        percent_axis(ax, limits)
    name = label(protection)
    symbol = symbol_of(protection)
    label_outer_axes(axes, f"{strength_axis(protection)} of {name}", "test accuracy at the end, %")
    style: list[Artist] = [
        Line2D([], [], color=QUIET, linewidth=1.8, marker="o", markersize=5, label="A"),
        Line2D([], [], color=QUIET, linewidth=1.8, linestyle="--", marker="o", mfc="white", markersize=5, label="B"),
    ]
    if len(strengths) > 1:
        style.append(Line2D([], [], color=BAND, linewidth=7, label=f"{symbol} chosen on validation data"))
    ran = {run["protection"] for run in result.runs}
    controls = [control] if control is not None else []
    drawn = [BASELINE, *controls, *(name for name in _levels(result) if name != BASELINE), protection]
    lines = [Patch(color=colour(n), label=Group(n, None, []).label) for n in drawn if n in ran]
    place_legends(figure, lines, style)
    kept = [
        mean_interval(g.values("accuracy_a_after")).mean for p in shown if (g := _at(result, p, protection, chosen))
    ]
    learned = [mean_interval(g.values("accuracy_b")).mean for p in shown if (g := _at(result, p, protection, chosen))]
    told = f"At {symbol} = {number(chosen or 0)}, A ends at {span(kept)} % and B at {span(learned)} %"
    title_figure(figure, told if len(strengths) > 1 else f"{told}; a trade-off takes several values of {symbol}")
    return figure


def chain_forgetting(result: TwoModelResult) -> Figure:
    """Points of test accuracy that each model of a chain lost by the end, per protection.

    Mean over seeds with 95 % interval and single seeds. The last model is left out: nothing is trained after it.

    Args:
        result: Runs, all or some of those asked for, of two or more models.

    Returns:
        The figure: a panel per number of shared layers and convergence.

    Raises:
        InputError: If there are no runs.
    """
    shown = panels_to_draw(result)
    letters = [model["model"] for model in result.runs[0]["models"][:-1]]
    found = {panel: groups(result, panel) for panel in shown}
    order = list(dict.fromkeys(g.protection for panel in shown for g in found[panel]))
    everything = [
        100 * model["forgetting"] for p in shown for g in found[p] for run in g.runs for model in run["models"]
    ]
    figure, axes = grid_of_panels(shown, height=(3.8, 3.2, 2.8), share="y")
    limits, width = limits_of(everything), 0.8 / len(order)
    for ax, panel in zip(axes, shown, strict=True):
        for group in found[panel]:
            shade = colour(group.protection)
            for j in range(len(letters)):
                x = j + (order.index(group.protection) - (len(order) - 1) / 2) * width
                values = [100 * run["models"][j]["forgetting"] for run in group.runs]
                estimate = mean_interval(values)
                ax.bar(x, estimate.mean, 0.86 * width, color=shade, alpha=0.85, zorder=2, gid=group.protection)
                draw_interval(ax, estimate, x, limits, vertical=True)
                ax.scatter(x + width * spread(len(values)), values, edgecolor=shade, **SEED)
        ax.axhline(0, color=INK, linewidth=0.9, zorder=3)
        ax.set_ylim(*limits)
        ax.set_xlim(-0.5, len(letters) - 0.5)
        ax.set_xticks(range(len(letters)), letters)
        ax.tick_params(axis="x", length=0, pad=7, labelcolor=INK)
        ax.grid(visible=False, axis="x")
    label_outer_axes(axes, "model, in the order of training", "forgetting, points")
    _legend(figure, result, shown, [])
    main = main_protection(result)
    kept = [_over_seeds(g, mean_forgetting) for p in shown for g in found[p] if g.protection == main]
    free = [_over_seeds(g, mean_forgetting) for p in shown for g in found[p] if g.protection == BASELINE]
    told = f"The models before the last lose {span(free or kept)} points on average"
    how = "" if not kept or not main else f", {span(kept)} with {label(main)}" if free else ""
    title_figure(figure, told + (" without protection" if free else "") + how)
    return figure


# What the figures are made of


def _legend(figure: Figure, result: TwoModelResult, shown: Sequence[Panel], style: list[Artist]) -> None:
    """Colours of the protections, then what the line styles mean, below the panels."""
    arms = dict.fromkeys((g.protection, g.label) for panel in shown for g in groups(result, panel))
    place_legends(figure, [Patch(color=colour(name), label=label) for name, label in arms], style)


def _widths(found: Sequence[Group]) -> list[float]:
    """Line widths for A's curves: where a later line covers an earlier one, the earlier is wider, so that both show."""
    means = [np.mean([run["curve"]["accuracy_a"] for run in group.runs], axis=0) for group in found]
    widths: list[float] = []
    for i in reversed(range(len(found))):
        covered = [w for w, other in zip(widths, means[i + 1 :], strict=True) if _mostly_equal(means[i], other)]
        widths.insert(0, max(covered, default=0.6) + 1.4)
    return widths


def _mostly_equal(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> bool:
    return bool(np.mean(np.abs(first - second) < 0.01) > 0.5)


def _curves(ax: Axes, group: Group, shade: str, width: float, order: float) -> None:
    """One protection's curves."""
    iterations = np.asarray(group.runs[0]["curve"]["iteration"])
    a, b = (100 * np.asarray([run["curve"][key] for run in group.runs]) for key in ("accuracy_a", "accuracy_b"))
    if len(a) > 1:
        ax.fill_between(iterations, a.min(0), a.max(0), color=shade, alpha=0.13, linewidth=0, zorder=order - 0.5)
    ax.plot(iterations, a.mean(0), color=shade, linewidth=width, zorder=order, gid=f"{group.protection} A")
    # In a chain the dashed line is another model from each model's first step on: it is not joined.
    starts = _starts(group.runs[0])
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


def _starts(run: Mapping[str, Any]) -> list[int]:
    """Where in a run's curve each model's part begins."""
    iterations, later = run["curve"]["iteration"], len(run["models"]) - 1
    each = iterations[-1] / later
    return [0] + [next(i for i, at in enumerate(iterations) if at > j * each) for j in range(1, later)]


def _mark_models(ax: Axes, result: TwoModelResult) -> None:
    """Say which model trains when, where there is more than one."""
    letters = later_models(result)
    if len(letters) < 2:
        return
    each = result.runs[0]["curve"]["iteration"][-1] / len(letters)
    for j, letter in enumerate(letters):
        if j:
            ax.axvline(j * each, color=QUIET, linewidth=0.8, zorder=1.2)
        ax.text((j + 0.5) * each, 0.02, f"{letter} trains", transform=ax.get_xaxis_transform(), **MARK, **FONT)


def _at(result: TwoModelResult, panel: Panel, protection: str, strength: float | None) -> Group | None:
    runs = [r for r in result.runs if panel.holds(r) and r["protection"] == protection and r["strength"] == strength]
    return Group(protection, strength, runs) if runs else None


def _levels(result: TwoModelResult) -> list[str]:
    """The arms without a strength that ran, controls apart: horizontal lines."""
    ran = {run["protection"] for run in result.runs}
    return [
        name
        for name in result.config.arms
        if name in ran and not PROTECTIONS[name].has_strength() and not is_control(name)
    ]


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
    ax: Axes, found: Sequence[Group | None], key: str, dash: str, limits: tuple[float, float] | None
) -> None:
    """One model's accuracy over the strength; with points and intervals, unless the axis limits are left out."""
    present = [group for group in found if group is not None]
    if not present:
        return
    protection, shade = present[0].protection, colour(present[0].protection)
    at = [float(group.strength or 0) for group in present]
    estimates = [mean_interval([100 * value for value in group.values(key)]) for group in present]
    means = [estimate.mean for estimate in estimates]
    style: dict[str, Any] = {"color": shade, "linestyle": dash, "gid": f"{protection} {key}"}
    if limits is None:
        ax.plot(at, means, linewidth=1.3, marker="o", markersize=3, zorder=2.5, **style)
        return
    fill = shade if key == "accuracy_a_after" else "white"
    ax.plot(at, means, linewidth=1.8, marker="o", markersize=6, markerfacecolor=fill, zorder=4.5, **style)
    for x, estimate in zip(at, estimates, strict=True):
        if estimate.low is not None and estimate.high is not None:
            possible = Interval(estimate.mean, max(estimate.low, 0.0), min(estimate.high, 100.0))
            draw_interval(ax, possible, x, limits, vertical=True, shade=shade)


def _over_seeds(group: Group, quantity: Any) -> float:
    return mean_interval([quantity(run) for run in group.runs]).mean


def _losses(result: TwoModelResult, shown: Sequence[Panel]) -> str:
    """Such as `loses 20.0 to 39.2 points without protection and 0.3 with weight plasticity`."""
    main = main_protection(result)
    found = [group for panel in shown for group in groups(result, panel)]
    parts: list[str] = []
    verb = ""
    for name in dict.fromkeys((BASELINE, main or found[0].protection)):
        lost = [mean_interval(group.values("forgetting")).mean for group in found if group.protection == name]
        if lost:
            gained = points(max(lost)).startswith("−")  # what reads as 0.0 is no gain
            present = "gains" if gained else "loses"
            amount = span([-value for value in lost] if gained else lost)
            if amount == "0.0":
                amount = "none"
            how = "without protection" if name == BASELINE else f"with {label(name)}"
            unit = "" if amount == "none" or any("points" in part for part in parts) else "points "
            parts.append(f"{'' if present == verb else present + ' '}{amount} {unit}{how}")
            verb = present
    return " and ".join(parts)


def _bars_title(result: TwoModelResult, shown: Sequence[Panel]) -> str:
    """How much of the forgetting the main protection prevents, over panels."""
    main = main_protection(result)
    pairs = []
    for panel in shown:
        found = {g.protection: g for g in groups(result, panel)}
        if main in found and BASELINE in found:
            free, held = ({r["seed"]: r["forgetting"] for r in found[name].runs} for name in (BASELINE, main))
            if seeds := sorted(set(free) & set(held)):
                pairs.append(reduction([held[s] for s in seeds], [free[s] for s in seeds], num_resamples=1))
    if not pairs or main is None:
        return f"While {listed(later_models(result))} trains, A {_losses(result, shown)}"
    name = label(main)
    shares = sorted(pair.mean for pair in pairs if pair is not None)
    if not shares:
        return "Without protection A does not forget: there is no forgetting to reduce"
    some = "" if len(shares) == len(pairs) else f", where there is any ({len(shares)} of {len(pairs)} panels)"
    low, high = (share({"mean": min(value, 1.0)}) for value in (shares[0], shares[-1]))
    if shares[-1] < 0:
        return f"With {name} A forgets more than without protection{some}"
    told = low if low == high else f"{low.removesuffix(' %')} to {high}"
    return f"{name.capitalize()} prevents {told} of A's forgetting{some}"
