"""The tables of a search, and what the page shows of it.

Forgetting is averaged over `SearchResult.forgetting_epochs` and rewards over the last quarter; only seeds that have all
their epochs count in a table.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from rich import table as rich

from forgetless.forgetting import ROUNDING
from forgetless.interference import InterferenceRecord
from forgetless.options import number
from forgetless.protection import BASELINE
from forgetless.report import formats
from forgetless.report.canvas import picture
from forgetless.report.search.cells import cell_drawing
from forgetless.report.search.figures import forgetting_curves
from forgetless.report.search.findings import headline_sentences
from forgetless.report.search.interference import interference_map, page_table
from forgetless.report.table import Row, Table, in_terminal, of_protection, table_of
from forgetless.search import make_space
from forgetless.search.records import SearchSummary
from forgetless.search.result import FORGETTING, MULTI_MODEL, REDUCTIONS, REWARD, SearchResult, epochs_text
from forgetless.tasks.base import decimal

_LOSSES = ("mean", "best 5", "maximum")
_OUTCOME = {"derived_test_error": "derived", "random_test_error": "random", "gain": "better by"}
_OF_EPOCHS = {
    "error_first": "err₁",
    "error_second": "err₂",
    REWARD: "reward",
    "strategy_entropy": "entropy",
    "penalty": "penalty",
    "mean_step": "mean step",
    "learning_rate": "learning rate",
    "num_diverged": "diverged",
}


def search_table(result: SearchResult) -> rich.Table:
    """What each protection did to forgetting, and what came of the search, over seeds; at most 80 columns wide."""
    unit, summary, trains = result.unit, result.summary(), result.config.trains_shared_weights
    parts = []
    if summary and trains:
        columns = _in_unit(result, dict(zip(FORGETTING, _LOSSES, strict=True)))
        columns["reduction of mean, %"] = lambda entry: reduction_cell(result, entry, REDUCTIONS[FORGETTING[0]], 0)
        title = f"Forgetting err₂ − err₁, {unit.name}, {epochs_text(result.forgetting_epochs)}"
        parts.append(table_of(title, summary, columns))
    if summary:
        test = "test error in nats per token" if unit.scale == 1 else "test error in %"
        title = f"Reward ({unit.reward}) and {test}" if trains else test.capitalize()
        parts.append(table_of(title, summary, _outcome(result, "time")))
    return in_terminal(parts, _notes(result))


def page_tables(result: SearchResult) -> list[Table]:
    """Forgetting, how much of it was prevented, and what came of the search."""
    summary, unit, columns = result.summary(), result.unit, _measured(result)
    if not summary:
        return []
    test = unit.name if unit.scale == 1 else "per cent"
    note = f"Derived and random: test {unit.error} in {test} after training from scratch."
    outcome = _outcome(result, "time, all seeds")
    if not result.config.trains_shared_weights:
        return [table_of("What came of it", summary, outcome, note)]
    interval = " ± is half the width of the 95 % interval over seeds." * _has_intervals(summary)
    parts = [
        table_of(
            "Forgetting",
            summary,
            {
                formats.strength_heading(entry.protection for entry in summary): lambda entry: formats.or_nothing(
                    result.config.options_of(entry.protection).strength_or_none
                ),
                **_in_unit(result, columns),
                "diverged": lambda entry: str(entry.num_diverged),
            },
            f"In {unit.name}, mean over {epochs_text(result.forgetting_epochs)}.{interval}",
        )
    ]
    held = [entry for entry in summary if entry.protection != BASELINE]
    if 0 < len(held) < len(summary):
        interval = ", with its 95 % interval" * _has_intervals(held)
        reductions = {
            name: partial(reduction_cell, result, key=REDUCTIONS[forgets]) for forgets, name in columns.items()
        }
        told = f"Reduction against no protection in the same seeds and epochs, in per cent{interval}."
        parts.append(table_of("How much of it was prevented", held, reductions, told))
    rewards = f"Reward: {unit.reward}, mean over {epochs_text(result.last_quarter)}. "
    return [*parts, table_of("What came of it", summary, outcome, rewards + note)]


def error_cell(result: SearchResult, key: str, entry: SearchSummary) -> str:
    """An error, or a difference of errors, with its interval."""
    return formats.plus_minus(getattr(entry, key), result.unit.decimals, result.unit.scale)


def _in_unit(result: SearchResult, columns: Mapping[str, str]) -> dict[str, Callable[[Any], str]]:
    """Column → its cells, of errors: key → column."""
    return {name: partial(error_cell, result, key) for key, name in columns.items()}


def _outcome(result: SearchResult, time: str) -> dict[str, Callable[[Any], str]]:
    return {
        "reward": lambda entry: formats.plus_minus(entry.reward),
        **_in_unit(result, _OUTCOME),
        time: lambda entry: formats.duration(entry.seconds),
    }


def reduction_cell(result: SearchResult, entry: SearchSummary, key: str, decimals: int = 1) -> str:
    """A reduction, such as `75 [60, 85]` per cent; key is one of the values of REDUCTIONS.

    `none to reduce` where the unprotected searches do not forget; – where it is missing.
    """
    if getattr(entry, key) is not None:
        return formats.bracketed(getattr(entry, key), decimals, 100)
    free = next((e for e in result.summary() if e.protection == BASELINE), None)
    forgets = next(name for name, reduced in REDUCTIONS.items() if reduced == key)
    is_idle = free is not None and getattr(free, forgets) is not None and getattr(free, forgets).mean <= ROUNDING
    return formats.NOTHING_TO_REDUCE if is_idle and entry.protection != BASELINE else formats.NOTHING


def _measured(result: SearchResult) -> dict[str, str]:
    """What may be forgotten: key → column."""
    part = {MULTI_MODEL: "multi-model part"} if result.has_multi_model_part else {}
    return dict(zip(FORGETTING, _LOSSES, strict=True)) | part


def _has_intervals(summary: Sequence[SearchSummary]) -> bool:
    return any(entry.num_seeds > 1 for entry in summary)


def _notes(result: SearchResult) -> list[str]:
    """How to read it, and what is missing."""
    summary, trains = result.summary(), result.config.trains_shared_weights
    notes = formats.unfinished(result.progress, "searches")
    seeds = max((entry.num_seeds for entry in summary), default=0)
    sign = " Negative forgetting is progress." * trains
    if seeds > 1:
        notes.append(f"± and [ ]: 95 % interval over {seeds} seeds.{sign}")
    elif seeds:
        notes.append(f"One seed gives no interval.{sign}")
    if not trains:
        return [*notes, f"Strategy {result.config.strategy_name}: no shared weights, no rewards, no forgetting."]
    if any(reduction_cell(result, entry, REDUCTIONS[FORGETTING[0]]) == formats.NOTHING_TO_REDUCE for entry in summary):
        notes.append(f"{formats.NOTHING_TO_REDUCE}: without protection the models do not forget on average.")
    if summary and BASELINE not in result.config.arms:
        notes.append("No reduction without an unprotected arm: take --controls.")
    if summary:
        notes.append(f"Reward: mean over {epochs_text(result.last_quarter)}. Time: over all seeds.")
    if parts := [f"{e.protection} {error_cell(result, MULTI_MODEL, e)}" for e in summary if getattr(e, MULTI_MODEL)]:
        notes.append(f"Multi-model part: {', '.join(parts)}.")
    if diverged := [f"{entry.protection} {entry.num_diverged}" for entry in summary if entry.num_diverged]:
        notes.append(f"Diverged models, left out: {', '.join(diverged)}.")
    return notes


# The page


def search_section(result: SearchResult, interference: Sequence[InterferenceRecord] = ()) -> dict[str, Any]:
    """What section.html shows of a search, and of who overwrites whom in it, where that was measured."""
    columns = _measured(result)
    # What is not measured in every search comes last.
    columns = {key: columns[key] for key in FORGETTING} | _OF_EPOCHS | columns
    return {
        "settings": _settings(result),
        "sentences": headline_sentences(result),
        "figures": _figures(result, interference),
        "tables": [*page_tables(result), *([page_table(result, interference)] if interference else [])],
        "cells": _cells(result),
        "reading": result.config.space.kind.reading,
        "derived": _derived_rows(result),
        "epoch_columns": list(columns.values()),
        "epochs": _epoch_rows(result, columns),
        "time": _time(result),
    }


def search_comparison(result: SearchResult) -> list[str]:
    """A search beside others: name, main protection, forgetting without and with it, reduction, both rewards."""
    entries = {entry.protection: entry for entry in result.summary()}
    main = result.main
    both = [entries.get(BASELINE), entries.get(main or "")]
    config, held = result.config, both[1]
    return [
        f"{config.space_name}, {config.strategy_name}, {config.data.name}, {result.unit.name}",
        formats.NOTHING if main is None else formats.label(main),
        *(error_cell(result, FORGETTING[0], entry) if entry else formats.NOTHING for entry in both),
        reduction_cell(result, held, "reduction_mean") if held else formats.NOTHING,
        *(formats.plus_minus(entry.reward if entry else None) for entry in both),
    ]


def _settings(result: SearchResult) -> str:
    config, schedule = result.config, result.config.schedule
    rate = f" at {number(config.optimizer.learning_rate)}{config.rates.in_words}"
    epochs = f"{schedule.epochs} epochs of {schedule.models_per_epoch} models × {schedule.batches_per_model} batches"
    parts = [
        config.space.kind.label,
        config.data.name,
        f"strategy {config.strategy_name}",
        config.space.kind(config.space).size,
        f"{config.optimizer.name}{rate if config.trains_shared_weights else ''}",
        epochs if config.trains_shared_weights else "",
        formats.counted(config.run.seeds, "seed"),
    ]
    return ", ".join(filter(None, parts))


def _figures(result: SearchResult, arms: Sequence[InterferenceRecord]) -> list[dict[str, str]]:
    drawn = []
    if result.epochs():
        seeds = len({record.seed for record in result.epochs()})
        over = f"mean over {seeds} seeds, in a band from the lowest to the highest" if seeds > 1 else "one seed"
        caption = (
            f"Forgetting of an epoch’s models by its end, and the strategy’s mean reward; {over}. Below 0 the models "
            "improved. Shaded: the epochs that the tables average over."
        )
        drawn.append(picture(forgetting_curves(result), caption))
    if arms:
        caption = (
            "Change of the error of i after j was trained, minus its change after i itself was, from the same state "
            f"(seed {arms[0].seed}, after {arms[0].epochs} epochs) and on the same batches. Red: i is worse off; "
            "grey: diverged."
        )
        drawn.append(picture(interference_map(result, arms), caption))
    return drawn


def _cells(result: SearchResult) -> list[dict[str, str]]:
    """A drawing of the best derived architecture of each protection."""
    space, drawn = make_space(result.config), []
    for protection in result.protections:
        if best := result.best_derived(protection):
            name = formats.label(protection)
            caption = f"{name[0].upper()}{name[1:]}, seed {best.seed}: {best.architecture}"
            drawn.append(picture(cell_drawing(space.parse(best.architecture)), caption))
    return drawn


def _derived_rows(result: SearchResult) -> list[tuple[Row, str]]:
    """A line per search, and the architecture that it derived."""
    keys = ("reward", "derived_validation_error", "derived_test_error", "random_test_error")
    records = [r for name in result.protections for r in sorted(result.derived(name), key=lambda r: int(r.seed))]
    cells = [[str(r.seed), *(_number(result, key, getattr(r, key)) for key in keys)] for r in records]
    return [(of_protection(r.protection, its), r.architecture) for r, its in zip(records, cells, strict=True)]


def _epoch_rows(result: SearchResult, keys: Iterable[str]) -> list[Row]:
    """A line per protection and epoch, of means over seeds."""
    rows = []
    for protection in result.protections:
        found = {key: result.by_epoch(protection, key) for key in keys}
        for epoch in sorted({record.epoch for record in result.epochs(protection)}):
            known = {key: by_epoch.get(epoch) for key, by_epoch in found.items()}
            means = {key: statistics.fmean(values) if values else None for key, values in known.items()}
            cells = [_number(result, key, mean) for key, mean in means.items()]
            rows.append(of_protection(protection, [str(epoch + 1), *cells]))
    return rows


def _number(result: SearchResult, key: str, value: float | None) -> str:
    if value is None:
        return formats.NOTHING
    if key in {*FORGETTING, MULTI_MODEL} or "error" in key:
        return result.unit.text(value)
    if key in {"penalty", "mean_step", "learning_rate", "num_diverged"}:
        return f"{value:.3g}"
    return decimal(value, 3)


def _time(result: SearchResult) -> str:
    """Wall clock over all records, and by phase."""
    phases = result.seconds_by_phase
    longest = ", ".join(f"{name} {formats.duration(seconds)}" for name, seconds in phases.items())
    whole = formats.duration(sum(phases.values()))
    return f"Searching and training the derived architectures took {whole}: {longest}." if phases else ""
