"""What the HTML report shows of a search."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from forgetless.options import number
from forgetless.protection import BASELINE
from forgetless.report.canvas import colour, data_uri
from forgetless.report.search.cells import cell_drawing
from forgetless.report.search.figures import forgetting_curves, plus_minus, share_cell
from forgetless.report.search.findings import headline_sentences, main_protection, strength
from forgetless.report.search.interference import COLUMNS, Arm, interference_cells, interference_map, interference_notes
from forgetless.report.two_model.groups import duration, is_control, label, strength_heading
from forgetless.search import make_space
from forgetless.search.result import (
    FORGETTING,
    MULTI_MODEL,
    REDUCTIONS,
    REWARD,
    SearchResult,
    epochs_text,
)
from forgetless.tasks.base import decimal

_EPOCH_COLUMNS = {
    **dict(zip(FORGETTING, ("mean", "best 5", "maximum"), strict=True)),
    "error_first": "err₁",
    "error_second": "err₂",
    REWARD: "reward",
    "strategy_entropy": "entropy",
    "penalty": "penalty",
    "mean_step": "mean step",
    "learning_rate": "learning rate",
    "num_diverged": "diverged",
}
_ERRORS = (*FORGETTING, "error_first", "error_second", MULTI_MODEL)


def search_section(result: SearchResult, interference: Sequence[Arm] = ()) -> dict[str, Any]:
    """What the template shows of a search.

    Args:
        result: Records, all or some of those asked for.
        interference: What was measured of who overwrites whom, per arm.

    Returns:
        Values for section.html, and for the parts of template.html that every run has.
    """
    said = headline_sentences(result)
    done, wanted = result.progress
    return {
        "settings": _settings(result),
        "headline": said[0],
        "details": " ".join(said[1:]),
        "findings": [],
        "unfinished": f"{done} of {wanted} searches are finished" if done < wanted else "",
        "figures": [*_figures(result), *_interference_figure(result, interference)],
        "tables": [*_tables(result), *_interference_table(result, interference)],
        "cells": _cells(result),
        "cells_note": _cells_note(result),
        "derived": _derived_rows(result),
        "epoch_columns": list(_epoch_columns(result).values()),
        "epochs": _epoch_rows(result),
        "time": _time(result),
    }


def search_comparison(result: SearchResult) -> list[str]:
    """A line of the table that sets several searches side by side.

    Args:
        result: The search.

    Returns:
        The search, its main protection, forgetting without and with it, reduction, reward without and with it.
    """
    summary = result.summary()
    entries = {entry["protection"]: entry for entry in summary}
    main = main_protection(result)
    free, held = entries.get(BASELINE, {}), entries.get(main or "", {})
    config, unit = result.config, result.unit
    return [
        f"{config.space_name}, {config.strategy_name}, {config.data.name}, {unit.name}",
        "–" if main is None else label(main),
        *(plus_minus(entry.get(FORGETTING[0]), unit) for entry in (free, held)),
        share_cell(held, "reduction_mean", summary) if held else "–",
        *(plus_minus(entry.get("reward")) for entry in (free, held)),
    ]


def _settings(result: SearchResult) -> str:
    config = result.config
    rates = [r["learning_rate"] for r in result.epochs() if not is_control(r["protection"])]
    rate = f" at {number(rates[0])}" if rates else ""
    schedule = config.schedule
    epochs = f"{schedule.epochs} epochs of {schedule.models_per_epoch} models × {schedule.batches_per_model} batches"
    return ", ".join(
        [
            config.space.kind.label,
            config.data.name,
            f"strategy {config.strategy_name}",
            config.space.kind(config.space).size,
            config.optimizer.name + rate,
            *([epochs] if config.trains_shared_weights else []),
            f"{config.run.seeds} seed{'' if config.run.seeds == 1 else 's'}",
        ]
    )


def _figures(result: SearchResult) -> list[dict[str, str]]:
    if not result.epochs():
        return []
    seeds = len({record["seed"] for record in result.epochs()})
    over = f"mean over {seeds} seeds, in a band from the lowest to the highest" if seeds > 1 else "one seed"
    caption = (
        f"Forgetting of an epoch’s models by its end, and the strategy’s mean reward; {over}. Below 0 the models "
        f"improved. Shaded: the epochs that the tables average over."
    )
    return [{"source": data_uri(forgetting_curves(result)), "caption": caption}]


def _tables(result: SearchResult) -> list[dict[str, Any]]:
    if not result.summary():
        return []
    lost = [_forgetting(result), *_reductions(result)] if result.config.trains_shared_weights else []
    return [*lost, _outcome(result)]


def _forgetting(result: SearchResult) -> dict[str, Any]:
    summary, unit = result.summary(), result.unit
    several = max(entry["num_seeds"] for entry in summary) > 1
    interval = " ± is half the width of the 95 % interval over seeds." * several
    heading = strength_heading(entry["protection"] for entry in summary)
    cells = [
        [
            "" if (value := strength(result, entry["protection"])) is None else number(value),
            *(plus_minus(entry[key], unit) for key in _measured(result)),
            str(entry["num_diverged"]),
        ]
        for entry in summary
    ]
    return {
        "title": "Forgetting",
        "note": f"In {unit.name}, mean over {epochs_text(result.forgetting_epochs)}.{interval}",
        "columns": [heading, *_measured(result).values(), "diverged"],
        "rows": _rows([entry["protection"] for entry in summary], cells),
    }


def _reductions(result: SearchResult) -> list[dict[str, Any]]:
    """The table of what was prevented; none without an unprotected arm to compare with."""
    summary = result.summary()
    held = [entry for entry in summary if entry["protection"] != BASELINE]
    if not held or len(held) == len(summary):
        return []
    ends = ", with its 95 % interval" * (max(entry["num_seeds"] for entry in held) > 1)
    cells = [[share_cell(entry, REDUCTIONS[key], summary) for key in _measured(result)] for entry in held]
    return [
        {
            "title": "How much of it was prevented",
            "note": f"Reduction against no protection in the same seeds and epochs, in per cent{ends}.",
            "columns": list(_measured(result).values()),
            "rows": _rows([entry["protection"] for entry in held], cells),
        }
    ]


def _measured(result: SearchResult) -> dict[str, str]:
    """What may be forgotten: key → column."""
    columns = dict(zip(FORGETTING, ("mean", "best 5", "maximum"), strict=True))
    return {**columns, **({MULTI_MODEL: "multi-model part"} if result.has_multi_model_part else {})}


def _outcome(result: SearchResult) -> dict[str, Any]:
    summary, unit = result.summary(), result.unit
    cells = [
        [
            plus_minus(entry["reward"]),
            *(plus_minus(entry[key], unit) for key in ("derived_test_error", "random_test_error", "gain")),
            duration(entry["seconds"]),
        ]
        for entry in summary
    ]
    rewards = f"Reward: {unit.reward}, mean over {epochs_text(result.last_quarter)}. "
    return {
        "title": "What came of it",
        "note": f"{rewards * result.config.trains_shared_weights}"
        f"Derived and random: test {unit.error} {_percent(result)}after training from scratch.",
        "columns": ["reward", "derived", "random", "better by", "time, all seeds"],
        "rows": _rows([entry["protection"] for entry in summary], cells),
    }


def _interference_figure(result: SearchResult, arms: Sequence[Arm]) -> list[dict[str, str]]:
    if not arms:
        return []
    caption = (
        f"Change of the error of i after j was trained, minus its change after i itself was, from the same state (seed "
        f"{arms[0]['seed']}, after {arms[0]['epochs']} epochs) and on the same batches. Red: i is worse off; grey: "
        f"diverged."
    )
    return [{"source": data_uri(interference_map(result, arms)), "caption": caption}]


def _interference_table(result: SearchResult, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    if not arms:
        return []
    return [
        {
            "title": "Who overwrites whom",
            "note": f"In {result.unit.name}. {' '.join(interference_notes(arms))}",
            "columns": list(COLUMNS),
            "rows": [_row(arm["protection"], interference_cells(result.unit, arm)) for arm in arms],
        }
    ]


def _percent(result: SearchResult) -> str:
    return f"in {result.unit.name} " if result.unit.scale == 1 else "in per cent "


def _rows(names: list[str], cells: list[list[str]]) -> list[dict[str, Any]]:
    return [_row(name, each) for name, each in zip(names, cells, strict=True)]


def _row(protection: str, cells: list[str]) -> dict[str, Any]:
    return {"name": label(protection), "colour": colour(protection), "cells": cells}


def _cells(result: SearchResult) -> list[dict[str, str]]:
    """One drawing per protection: of the seed whose derived architecture has the lowest validation error."""
    space, drawn = make_space(result.config), []
    for protection in result.protections:
        found = [r for r in result.derived(protection) if r["derived_validation_error"] is not None]
        if not found:
            continue
        best = min(found, key=lambda record: float(record["derived_validation_error"]))
        name = label(protection)
        drawn.append(
            {
                "source": data_uri(cell_drawing(space.parse(best["architecture"]))),
                "caption": f"{name[0].upper()}{name[1:]}, seed {best['seed']}: {best['architecture']}",
            }
        )
    return drawn


def _cells_note(result: SearchResult) -> str:
    how = result.config.space.kind.reading
    return f"Of several seeds, the one with the lowest validation error after training from scratch. {how}"


def _derived_rows(result: SearchResult) -> list[dict[str, Any]]:
    keys = ("derived_validation_error", "derived_test_error", "random_test_error")
    rows = []
    for protection in result.protections:
        for record in sorted(result.derived(protection), key=lambda record: int(record["seed"])):
            reward = "–" if record["reward"] is None else decimal(record["reward"], 3)
            cells = [str(record["seed"]), reward, *(_number(result, key, record[key]) for key in keys)]
            rows.append({**_row(protection, cells), "architecture": record["architecture"]})
    return rows


def _epoch_columns(result: SearchResult) -> dict[str, str]:
    return {**_EPOCH_COLUMNS, **({MULTI_MODEL: "multi-model part"} if result.has_multi_model_part else {})}


def _epoch_rows(result: SearchResult) -> list[dict[str, Any]]:
    rows = []
    for protection in result.protections:
        by_epoch: dict[int, list[Mapping[str, Any]]] = {}
        for record in result.epochs(protection):
            by_epoch.setdefault(record["epoch"], []).append(record)
        for epoch, records in sorted(by_epoch.items()):
            cells = [str(epoch + 1)]
            for key in _epoch_columns(result):
                values = [record[key] for record in records if record.get(key) is not None]
                cells.append(_number(result, key, statistics.fmean(values) if values else None))
            rows.append(_row(protection, cells))
    return rows


def _number(result: SearchResult, key: str, value: float | None) -> str:
    if value is None:
        return "–"
    if key in _ERRORS or key.endswith("_error"):
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
