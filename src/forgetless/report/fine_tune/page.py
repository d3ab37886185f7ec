"""What the terminal and the HTML report show of a fine-tuning."""

import math
from typing import Any

from rich import table as rich

from forgetless.experiments.fine_tune.config import FineTuneConfig
from forgetless.experiments.fine_tune.records import FineTuneRecord, MethodSummary
from forgetless.experiments.fine_tune.result import FineTuneResult
from forgetless.forgetting import Interval
from forgetless.options import number
from forgetless.protection import BASELINE
from forgetless.report import formats
from forgetless.report.canvas import picture
from forgetless.report.fine_tune.figure import frontier_figure
from forgetless.report.fine_tune.findings import (
    arm_of,
    budgets,
    compared,
    frontier,
    lost,
    method_label,
    seen,
    sentences_of,
    targets,
    text_name,
)
from forgetless.report.table import Cell, Row, Table, in_terminal, of_protection
from forgetless.tasks.base import decimal

_COST = ("time", "passes", "held")
# Of a table that a browser still shows; metrics.jsonl has all.
_MOST_ROWS = 1000


def fine_tune_table(result: FineTuneResult) -> rich.Table:
    """What each arm kept of the old text and learned of the new one, over seeds, and what it cost."""
    entries = compared(result)
    strength = formats.strength_heading(entry.protection for entry in entries)
    # Where all see the same, a note says what: the table is as wide as a terminal already.
    differs = len(_evidence(result)) > 1
    columns = (*(["sees"] if differs else []), strength, "old loss", "new loss", *_COST)
    tables = []
    for to in targets(result):
        rows = []
        for entry in [entry for entry in entries if entry.to == to]:
            sees = [seen(entry.on).partition(" ")[0]] if differs else []
            rows.append(of_protection(entry.protection, [*sees, *_measured(entry), *_cost(result, entry)]))
        tables.append(Table(f"Fine-tuned on {text_name(to)}", columns, rows))
    return in_terminal(tables, _notes(result))


def _evidence(result: FineTuneResult) -> list[str]:
    """What protections see of the past, in words."""
    return [seen(on) for on in dict.fromkeys(run.on for run in result.runs) if on]


def _measured(entry: MethodSummary) -> list[str | Cell]:
    """Strength, rise of the old loss, new loss; marked where no other arm is better on both."""
    rise, new = _rise(entry.old_increase), formats.plus_minus(entry.new)
    return [formats.or_nothing(entry.strength), rise, Cell(new, is_best=not entry.is_dominated)]


def _rise(interval: Interval, decimals: int = 3) -> str:
    """`+0.289 ±0.021`."""
    text = formats.plus_minus(interval, decimals)
    return f"+{text}" if round(interval.mean, decimals) > 0 else text


def _cost(result: FineTuneResult, entry: FineTuneRecord | MethodSummary) -> list[str]:
    """Time relative to no protection, passes of a step, numbers held for each weight."""
    return [_time(result, entry), f"{entry.passes:.3g}", f"{entry.held:.3g}"]


def _time(result: FineTuneResult, entry: FineTuneRecord | MethodSummary) -> str:
    """Of a run, relative to the unprotected ones of the same text and seeds; in seconds without any."""
    runs = [run for run in result.runs if run.to == entry.to]
    mine = {run.seed: run.seconds for run in runs if arm_of(run) == arm_of(entry)}
    free = {run.seed: run.seconds for run in runs if run.protection == BASELINE}
    both = mine.keys() & free.keys()
    if not both or not math.fsum(free[seed] for seed in both):
        return formats.duration(math.fsum(mine.values()) / len(mine)) if mine else formats.NOTHING
    return f"×{math.fsum(mine[seed] for seed in both) / math.fsum(free[seed] for seed in both):.2f}"


def _of_difference(result: FineTuneResult) -> str:
    """What the intervals of the new loss are of, where they are not of the loss."""
    is_compared = any(run.protection == BASELINE for run in result.runs)
    return ", that of the new loss of its difference to no protection" if is_compared else ""


def _notes(result: FineTuneResult) -> list[str]:
    """How to read it, and what is missing."""
    notes = [*formats.unfinished(result.progress, "runs"), *budgets(result), *lost(result)]
    if not result.runs:
        return notes
    seeds = len({run.seed for run in result.runs})
    interval = (
        f"±: 95 % interval over {seeds} seeds{_of_difference(result)}" if seeds > 1 else "one seed gives no interval"
    )
    old = text_name(result.config.texts.old)
    evidence = _evidence(result)
    told = f"Seen of the past: {', '.join(evidence)}. " if evidence else ""
    return [
        *notes,
        f"Nats per token; old loss: its rise on {old}; {interval}.",
        f"{told}*: no other arm is better on both texts.",
        "Passes: cost of a step, a plain one is 1. Held: numbers kept per weight.",
    ]


# The page


def fine_tune_section(result: FineTuneResult) -> dict[str, Any]:
    """What section.html shows of a fine-tuning, finished or not."""
    found, entries = targets(result), compared(result)
    runs = [*result.runs, *result.diverged]
    strength = formats.strength_heading(entry.protection for entry in entries)
    told = [(f"On {text_name(to)}", " ".join(frontier(result, to))) for to in found]
    return {
        "settings": _settings(result.config),
        "sentences": sentences_of(result),
        "findings": [(name, text) for name, text in told if text] if len(found) > 1 else [],
        "figures": [picture(frontier_figure(result), _caption(result))] if found else [],
        "old": text_name(result.config.texts.old),
        "columns": ["sees", strength, "rise of the old loss", "expected", "new loss", *_COST],
        "panels": [(text_name(to), [_row(result, e) for e in entries if e.to == to]) for to in found],
        "seeds": [_seed_row(run) for run in runs[:_MOST_ROWS]],
        "num_runs": len(runs),
        "num_seeds": len({run.seed for run in result.runs}),
        "of_difference": _of_difference(result),
        "time": _total(result),
    }


def _settings(config: FineTuneConfig) -> str:
    model, schedule, optimizer = config.model, config.schedule, config.optimizer
    size = f"{formats.counted(model.layers, 'layer')} of width {model.width}, {schedule.pretraining} steps on"
    return (
        f"{f'{text_name(model.folder)}, knows' if model.folder else size} {text_name(config.texts.old)}; "
        f"then {schedule.steps} steps on {' or '.join(map(text_name, config.texts.to))}, "
        f"{optimizer.name} at {number(optimizer.learning_rate)}, {formats.counted(config.run.seeds, 'seed')}"
    )


def _caption(result: FineTuneResult) -> str:
    seeds = len({run.seed for run in result.runs})
    over = f"means over {seeds} seeds with 95 % intervals{_of_difference(result)}" if seeds > 1 else "one seed"
    return (
        f"Lower and further to the left is better; {over}. A curve is one method over its strengths. Pale: another arm "
        "is better on both texts, by the means. The others are on the frontier, with their strength beside them. "
        "The circle is the model before fine-tuning. Arrows stand at an axis’s end for what is beyond it. Both losses "
        "are of text that was neither trained on nor chosen by."
    )


def _row(result: FineTuneResult, entry: MethodSummary) -> Row:
    """On the page, in colour where it is on the frontier."""
    strength, rise, new = (cell.text if isinstance(cell, Cell) else cell for cell in _measured(entry))
    expected = formats.NOTHING if entry.expected_loss_increase is None else _rise(entry.expected_loss_increase)
    cells = [seen(entry.on) or formats.NOTHING, strength, rise, expected, new, *_cost(result, entry)]
    return of_protection(entry.protection, cells, is_chosen=not entry.is_dominated)


def _seed_row(run: FineTuneRecord) -> list[str]:
    losses = (run.old_before, run.old_after, run.new_before, run.new_after)
    return [
        str(run.seed),
        text_name(run.to),
        method_label(run),
        *(formats.NOTHING if math.isnan(loss) else decimal(loss, 3) for loss in losses),
        str(run.steps),
        f"{run.seconds:.1f}",
    ]


def _total(result: FineTuneResult) -> str:
    runs = [*result.runs, *result.diverged]
    took = formats.duration(math.fsum(run.seconds for run in runs))
    return f"Fine-tuning took {took} in {formats.counted(len(runs), 'run')}; pretraining comes on top." if runs else ""


def fine_tune_comparison(result: FineTuneResult) -> list[list[str]]:
    """A run beside others: a line for each arm on the frontier."""
    rows = []
    for to in targets(result):
        for entry in compared(result):
            if entry.to == to and not entry.is_dominated:
                rise, new = _rise(entry.old_increase), formats.plus_minus(entry.new)
                rows.append([text_name(to), method_label(entry), rise, new, _time(result, entry)])
    return rows
