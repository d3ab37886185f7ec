"""What the terminal and the HTML report show of a landscape."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from forgetless.experiments.landscape.config import LandscapeConfig
from forgetless.experiments.landscape.records import ArmRecord, places
from forgetless.experiments.landscape.result import LandscapeResult, measures
from forgetless.options import number
from forgetless.report.canvas import colour, data_uri
from forgetless.report.formats import duration, listed, points, unfinished, with_protection
from forgetless.report.landscape.figure import landscape_figure
from forgetless.report.landscape.words import arm_name, finding, mean_of, signed

_COLUMNS = ("A’s loss before", "after", "rise", "expected", "B’s loss", "‖Δθ‖", "path in plane, %", "end in plane, %")
_KEYS = ("loss_a_before", "loss_a_after", "rise", "predicted", "loss_b", "distance", "share_of_length", "share_of_end")


def landscape_table(result: LandscapeResult) -> Table:
    """How far each arm moved the shared weights, and what that did to A; means over seeds.

    Args:
        result: Records, all or some of those asked for.
    """
    table = Table(box=box.SIMPLE_HEAD, caption=_notes(result), caption_justify="left", pad_edge=False)
    for i, name in enumerate(("protection", "", "A after", "rise", "expected", "B", "‖Δθ‖", "in plane")):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for arms in _groups(result):
        first = arms[0]
        cells = [_cell(key, mean_of(arms, key)) for key in _KEYS[1:-1]]
        table.add_row(first.protection, "" if first.strength is None else number(first.strength), *cells)
    return table


def _notes(result: LandscapeResult) -> Text:
    seeds = len({arm.seed for arm in result.arms})
    over = f"means over {seeds} seeds" if seeds > 1 else "one seed"
    notes = [*unfinished(_progress(result), "records"), _diverged(result)]
    notes.append(f"Validation losses in nats, {over}; in plane: % of the path’s length.")
    return Text("\n".join(filter(None, notes)), style="dim")


def landscape_section(result: LandscapeResult) -> dict[str, Any]:
    """What the template shows of a landscape.

    Args:
        result: Records, all or some of those asked for.
    """
    arms = [arm for arm in result.arms if not arm.is_diverged]
    seeds = len({arm.seed for arm in result.arms})
    return {
        "settings": _settings(result.config),
        "sentences": [finding(arms), *_details(result, arms)] if result.arms else ["No seed is finished yet."],
        "progress": (*_progress(result), "records"),
        "figures": [{"source": data_uri(landscape_figure(result)), "caption": _caption(result)}] if result.arms else [],
        "columns": _COLUMNS,
        "rows": [_row(arms) for arms in _groups(result)],
        "seeds": [[str(arm.seed), arm_name(arm.protection, arm.strength), *_cells([arm])] for arm in arms],
        "num_seeds": seeds,
        "rise": number(result.config.slice.rise),
        "images": result.config.slice.images,
        "compares_ewc": {"ewc", "wpl"} <= {arm.protection for arm in arms},
        "time": f"Training and following B took {duration(sum(arm.seconds for arm in result.arms))}."
        if result.arms
        else "",
    }


def _settings(config: LandscapeConfig) -> str:
    pair, optimizer = config.pair, config.optimizer
    return ", ".join(
        [
            config.data.name,
            f"{pair.wiring} wiring",
            f"{pair.shared} shared layer{'' if pair.shared == 1 else 's'} of width {pair.width}",
            f"{optimizer.name} at {number(optimizer.learning_rate)}",
            f"{config.schedule.iterations} iterations",
            f"{config.run.seeds} seed{'' if config.run.seeds == 1 else 's'}",
        ]
    )


def _details(result: LandscapeResult, arms: Sequence[ArmRecord]) -> list[str]:
    """What the Fisher information expected, and how much of the paths the plane shows."""
    groups = _groups(result)
    names = [arm_name(group[0].protection, group[0].strength) for group in groups]
    expected = [f"{name}: {signed(mean_of(group, 'predicted'))}" for group, name in zip(groups, names, strict=True)]
    shown = [
        f"{name}: {points(share, 0)} %"
        for group, name in zip(groups, names, strict=True)
        if (share := mean_of(group, "share_of_length")) is not None
    ]
    seeds = len({arm.seed for arm in arms})
    sentences = [
        f"These are means over {seeds} seeds." if seeds > 1 else "This is one seed.",
        f"What the Fisher information expects of A’s loss, in nats: {'; '.join(expected)}.",
        f"The plane has two of {_weights(result)} directions. What it shows of the paths’ length: {'; '.join(shown)}.",
        _diverged(result),
    ]
    return [sentence for sentence in sentences if sentence]


def _weights(result: LandscapeResult) -> str:
    return f"{next(iter(result.surfaces.values())).num_weights:,}"


def _caption(result: LandscapeResult) -> str:
    arms = [arm for arm in result.arms if arm.seed == result.arms[0].seed]
    first, last = (with_protection(arms[i].protection) for i in (0, -1))
    rise = number(result.config.slice.rise)
    return (
        f"Seed {arms[0].seed}. The plane goes through A’s weights (the circle) and the ends of B’s training {first} "
        f"and {last}. Squares: where B’s training ended; other arms are projected on the plane. Grey: A’s validation "
        f"loss, with the line where it has risen by {rise} nats. Dashed: where the Fisher information expects that, "
        "and a tenth of it; these are ellipses around A, of which the plane may show no more than the sides. Green: "
        "B’s validation loss with B’s own weights at the end of the panel’s arm, so that each panel has its own."
    )


def _groups(result: LandscapeResult) -> list[list[ArmRecord]]:
    """The arms of each protection and strength, without those that diverged."""
    groups: dict[tuple[str, float | None], list[ArmRecord]] = {}
    for arm in result.arms:
        if not arm.is_diverged:
            groups.setdefault((arm.protection, arm.strength), []).append(arm)
    return list(groups.values())


def _row(arms: Sequence[ArmRecord]) -> dict[str, Any]:
    first = arms[0]
    return {
        "name": arm_name(first.protection, first.strength),
        "colour": colour(first.protection),
        "cells": _cells(arms),
    }


def _cells(arms: Sequence[ArmRecord]) -> list[str]:
    """The mean of each measure, and the least and the greatest rise."""
    cells = {key: _cell(key, mean_of(arms, key)) for key in _KEYS}
    rises = sorted(measures(arm)["rise"] or 0.0 for arm in arms)
    if len(arms) > 1:
        cells["rise"] += f" ({signed(rises[0])} to {signed(rises[-1])})"
    return list(cells.values())


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    if key.startswith("share"):
        return points(value, 0)
    if key in {"rise", "predicted"}:
        return signed(value)
    return f"{value:.1f}" if key == "distance" else f"{value:.3f}"


def _progress(result: LandscapeResult) -> tuple[int, int]:
    """Records that are made, and those that are asked for."""
    return len(result.arms) + len(result.surfaces), len(places(result.config))


def _diverged(result: LandscapeResult) -> str:
    lost = [arm for arm in result.arms if arm.is_diverged]
    told = [f"{arm_name(arm.protection, arm.strength)} with seed {arm.seed}" for arm in lost]
    return f"Diverged, and in no mean: {listed(told)}. A lower learning rate may help." if told else ""
