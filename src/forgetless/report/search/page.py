"""What the page shows of a search."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from forgetless.options import number
from forgetless.protection import BASELINE
from forgetless.report.canvas import picture
from forgetless.report.formats import NOTHING, counted, duration, is_control, label, plus_minus
from forgetless.report.search.cells import cell_drawing
from forgetless.report.search.figures import forgetting_curves
from forgetless.report.search.findings import headline_sentences, main_protection
from forgetless.report.search.interference import Arm, interference_map, page_table
from forgetless.report.search.tables import in_unit, measured, page_tables, reduction_cell
from forgetless.report.table import Row, of_protection
from forgetless.search import make_space
from forgetless.search.result import FORGETTING, MULTI_MODEL, REWARD, SearchResult
from forgetless.tasks.base import decimal

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


def search_section(result: SearchResult, interference: Sequence[Arm] = ()) -> dict[str, Any]:
    """What section.html shows of a search, and of who overwrites whom in it, where that was measured."""
    columns = _epoch_columns(result)
    return {
        "settings": _settings(result),
        "sentences": headline_sentences(result),
        "progress": (*result.progress, "searches"),
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
    entries = {entry["protection"]: entry for entry in result.summary()}
    main = main_protection(result)
    both = [entries.get(BASELINE), entries.get(main or "")]
    config, held = result.config, both[1]
    return [
        f"{config.space_name}, {config.strategy_name}, {config.data.name}, {result.unit.name}",
        NOTHING if main is None else label(main),
        *(in_unit(result, entry, FORGETTING[0])[0] if entry else NOTHING for entry in both),
        reduction_cell(result, held, "reduction_mean") if held else NOTHING,
        *(plus_minus(entry["reward"] if entry else None) for entry in both),
    ]


def _settings(result: SearchResult) -> str:
    config, schedule = result.config, result.config.schedule
    rates = [r["learning_rate"] for r in result.epochs() if not is_control(r["protection"])]
    epochs = f"{schedule.epochs} epochs of {schedule.models_per_epoch} models × {schedule.batches_per_model} batches"
    parts = [
        config.space.kind.label,
        config.data.name,
        f"strategy {config.strategy_name}",
        config.space.kind(config.space).size,
        config.optimizer.name + (f" at {number(rates[0])}" if rates else ""),
        epochs if config.trains_shared_weights else "",
        counted(config.run.seeds, "seed"),
    ]
    return ", ".join(filter(None, parts))


def _figures(result: SearchResult, arms: Sequence[Arm]) -> list[dict[str, str]]:
    drawn = []
    if result.epochs():
        seeds = len({record["seed"] for record in result.epochs()})
        over = f"mean over {seeds} seeds, in a band from the lowest to the highest" if seeds > 1 else "one seed"
        caption = (
            f"Forgetting of an epoch’s models by its end, and the strategy’s mean reward; {over}. Below 0 the models "
            "improved. Shaded: the epochs that the tables average over."
        )
        drawn.append(picture(forgetting_curves(result), caption))
    if arms:
        caption = (
            "Change of the error of i after j was trained, minus its change after i itself was, from the same state "
            f"(seed {arms[0]['seed']}, after {arms[0]['epochs']} epochs) and on the same batches. Red: i is worse off; "
            "grey: diverged."
        )
        drawn.append(picture(interference_map(result, arms), caption))
    return drawn


def _cells(result: SearchResult) -> list[dict[str, str]]:
    """One drawing per protection: of the seed whose derived architecture has the lowest validation error."""
    space, drawn = make_space(result.config), []
    for protection in result.protections:
        found = [r for r in result.derived(protection) if r["derived_validation_error"] is not None]
        if found:
            best = min(found, key=lambda record: float(record["derived_validation_error"]))
            name = label(protection)
            caption = f"{name[0].upper()}{name[1:]}, seed {best['seed']}: {best['architecture']}"
            drawn.append(picture(cell_drawing(space.parse(best["architecture"])), caption))
    return drawn


def _derived_rows(result: SearchResult) -> list[tuple[Row, str]]:
    """A line per search, and the architecture that it derived."""
    keys = ("reward", "derived_validation_error", "derived_test_error", "random_test_error")
    records = [r for name in result.protections for r in sorted(result.derived(name), key=lambda r: int(r["seed"]))]
    return [
        (
            of_protection(r["protection"], [str(r["seed"]), *(_number(result, key, r[key]) for key in keys)]),
            r["architecture"],
        )
        for r in records
    ]


def _epoch_columns(result: SearchResult) -> dict[str, str]:
    """Key → column; what is not measured in every search comes last."""
    columns = measured(result)
    return {key: columns[key] for key in FORGETTING} | _OF_EPOCHS | columns


def _epoch_rows(result: SearchResult, keys: Mapping[str, str]) -> list[Row]:
    rows = []
    for protection in result.protections:
        by_epoch: dict[int, list[Mapping[str, Any]]] = {}
        for record in result.epochs(protection):
            by_epoch.setdefault(record["epoch"], []).append(record)
        for epoch, records in sorted(by_epoch.items()):
            cells = [str(epoch + 1)]
            for key in keys:
                values = [record[key] for record in records if record.get(key) is not None]
                cells.append(_number(result, key, statistics.fmean(values) if values else None))
            rows.append(of_protection(protection, cells))
    return rows


def _number(result: SearchResult, key: str, value: float | None) -> str:
    if value is None:
        return NOTHING
    if key in {*FORGETTING, MULTI_MODEL} or "error" in key:
        return result.unit.text(value)
    if key in {"penalty", "mean_step", "learning_rate", "num_diverged"}:
        return f"{value:.3g}"
    return decimal(value, 3)


def _time(result: SearchResult) -> str:
    """Wall clock over all records, and by phase, the longest first."""
    phases: dict[str, float] = {}
    for record in (*result.epochs(), *result.derived()):
        for phase, seconds in record["seconds"].items():
            phases[phase] = phases.get(phase, 0.0) + seconds
    if not phases:
        return ""
    longest = ", ".join(f"{name} {duration(s)}" for name, s in sorted(phases.items(), key=lambda item: -item[1]))
    return f"Searching and training the derived architectures took {duration(sum(phases.values()))}: {longest}."
