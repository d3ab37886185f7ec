"""What the terminal and the HTML report show of a landscape."""

from collections.abc import Iterable
from typing import Any

from rich import table as rich

from forgetless.experiments.landscape.config import LandscapeConfig
from forgetless.experiments.landscape.records import ArmMeasures, ArmRecord, LandscapeSummary
from forgetless.experiments.landscape.result import LandscapeResult
from forgetless.forgetting import Interval
from forgetless.options import number
from forgetless.report import formats
from forgetless.report.canvas import picture
from forgetless.report.landscape.figure import landscape_figure
from forgetless.report.landscape.findings import details, finding, lost, over_seeds
from forgetless.report.table import Row, Table, in_terminal, of_protection
from forgetless.tasks.base import decimal

_IN_TERMINAL = {
    "loss_a_after": "A after",
    "rise": "rise",
    "predicted": "expected",
    "loss_b": "B",
    "distance": "‖Δθ‖",
    "share_of_length": "in plane",
}
_ON_PAGE = {
    "loss_a_before": "A’s loss before",
    "loss_a_after": "after",
    "rise": "rise",
    "predicted": "expected",
    "loss_b": "B’s loss",
    "distance": "‖Δθ‖",
    "share_of_length": "path in plane, %",
    "share_of_end": "end in plane, %",
}


def landscape_table(result: LandscapeResult) -> rich.Table:
    """How far each arm moved the shared weights, and what that did to A; means over seeds."""
    entries = result.summary()
    columns = (formats.strength_heading(entry.protection for entry in entries), *_IN_TERMINAL.values())
    rows = [
        of_protection(entry.protection, [formats.or_nothing(entry.strength), *_cells(entry, _IN_TERMINAL)])
        for entry in entries
    ]
    title = f"Validation losses in nats, {over_seeds(result)}"
    notes = [*formats.unfinished(result.progress, "records"), *lost(result), "In plane: % of the path’s length."]
    return in_terminal([Table(title, columns, rows)], notes)


def landscape_section(result: LandscapeResult) -> dict[str, Any]:
    """What the template shows of a landscape."""
    arms, entries = result.arms, result.summary()
    took = formats.duration(sum(arm.seconds for arm in arms))
    return {
        "settings": _settings(result.config),
        "sentences": [finding(result), *details(result)] if arms else ["No seed is finished yet."],
        "figures": [picture(landscape_figure(result), _caption(result))] if arms else [],
        "columns": list(_ON_PAGE.values()),
        "rows": [_row(entry, _with_range(result, entry)) for entry in entries],
        "seeds": [_row(arm, [str(arm.seed), *_cells(arm.measures, _ON_PAGE)]) for arm in arms if not arm.is_diverged],
        "num_seeds": result.num_seeds,
        "images": result.config.slice.images,
        "compares_ewc": {"ewc", "wpl"} <= {entry.protection for entry in entries},
        "time": f"Training and following B took {took}." if arms else "",
    }


def _settings(config: LandscapeConfig) -> str:
    pair, optimizer = config.pair, config.optimizer
    return (
        f"{config.data.name}, {pair.wiring} wiring, "
        f"{formats.counted(pair.shared, 'shared layer')} of width {pair.width}, "
        f"{optimizer.name} at {number(optimizer.learning_rate)}, {config.schedule.iterations} iterations, "
        f"{formats.counted(config.run.seeds, 'seed')}"
    )


def _caption(result: LandscapeResult) -> str:
    arms = [arm for arm in result.arms if arm.seed == result.arms[0].seed]
    first, last = (formats.with_protection(arms[i].protection) for i in (0, -1))
    rise = number(result.config.slice.rise)
    return (
        f"Seed {arms[0].seed}. The plane goes through A’s weights (the circle) and the ends of B’s training {first} "
        f"and {last}. Squares: where B’s training ended; other arms are projected on the plane. Grey: A’s validation "
        f"loss, with the line where it has risen by {rise} nats. Dashed: where the Fisher information expects that, "
        "and a tenth of it; these are ellipses around A, of which the plane may show no more than the sides. Green: "
        "B’s validation loss with B’s own weights at the end of the panel’s arm, so that each panel has its own."
    )


def _row(arm: LandscapeSummary | ArmRecord, cells: list[str]) -> Row:
    return of_protection(arm.protection, cells, name=formats.arm_label(arm.protection, arm.strength))


def _with_range(result: LandscapeResult, entry: LandscapeSummary) -> list[str]:
    """The mean of each measure, and the least and the greatest rise."""
    arms = [arm for arm in result.arms if (arm.protection, arm.strength) == (entry.protection, entry.strength)]
    rises = sorted(arm.measures.rise for arm in arms if not arm.is_diverged)
    cells = dict(zip(_ON_PAGE, _cells(entry, _ON_PAGE), strict=True))
    if len(rises) > 1:
        cells["rise"] += f" ({formats.signed(rises[0])} to {formats.signed(rises[-1])})"
    return list(cells.values())


def _cells(of: LandscapeSummary | ArmMeasures, keys: Iterable[str]) -> list[str]:
    values = {key: getattr(of, key) for key in keys}
    return [_cell(key, value.mean if isinstance(value, Interval) else value) for key, value in values.items()]


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return formats.NOTHING
    if key.startswith("share"):
        return formats.points(value, 0)
    if key in {"rise", "predicted"}:
        return formats.signed(value)
    return decimal(value, 1 if key == "distance" else 3)
