"""The curves of a search, from its records alone: every record is shown."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from forgetless.errors import InputError
from forgetless.report.canvas import BAND, FONT, INK, colour, colours, finish, grid
from forgetless.report.formats import arm_label
from forgetless.report.search.findings import curves_title
from forgetless.search.result import FORGETTING, MULTI_MODEL, REWARD, SearchResult

_PANELS = (
    *zip(FORGETTING, ("(a) mean over models", "(b) mean of the best 5", "(c) maximum"), strict=True),
    (REWARD, "(d) reward of the strategy"),
)
_PART = (MULTI_MODEL, "(e) multi-model part")
_MOST_MARKED = 12  # epochs that get a dot each


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
        scale = 1.0 if key == REWARD else unit.scale
        drawn = [_draw(ax, result, name, key, scale, 2 + i) for i, name in enumerate(result.protections)]
        if not any(drawn):
            ax.text(0.5, 0.5, "not recorded", transform=ax.transAxes, ha="center", fontsize=10, **FONT)
        ax.set_xlim(0.5, max(result.config.schedule.epochs, 2) + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(5))
        quantity = {REWARD: unit.reward, MULTI_MODEL: unit.name}.get(key, f"err₂ − err₁, {unit.name}")
        ax.set_ylabel(quantity, fontsize=9.5, **FONT)
    labels = {name: arm_label(name, result.config.options_of(name).strength_or_none) for name in result.protections}
    shaded = Patch(facecolor=BAND, alpha=0.55, label="averaged in the tables")
    finish(figure, curves_title(result), "epoch", lines=colours(labels), style=[shaded])
    return figure


def _draw(ax: Axes, result: SearchResult, protection: str, key: str, scale: float, order: float) -> bool:
    """One protection's mean over seeds and their band; False if there is nothing to draw."""
    by_epoch = {e: [scale * v for v in values] for e, values in result.by_epoch(protection, key).items()}
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
