"""Tables of a search: what each protection did to forgetting, and what came of the search.

Forgetting is averaged over `SearchResult.forgetting_epochs` and rewards over the last quarter; only seeds that have all
their epochs count.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import table as rich

from forgetless.forgetting import ROUNDING
from forgetless.protection import BASELINE
from forgetless.report.formats import (
    NOTHING,
    NOTHING_TO_REDUCE,
    bracketed,
    duration,
    or_nothing,
    plus_minus,
    strength_heading,
)
from forgetless.report.table import Table, in_terminal, of_protection
from forgetless.search.result import FORGETTING, MULTI_MODEL, REDUCTIONS, SearchResult, epochs_text

_LOSSES = ("mean", "best 5", "maximum")
_OUTCOME = ("derived_test_error", "random_test_error", "gain")
_COLUMNS = ("reward", "derived", "random", "better by")


def search_table(result: SearchResult) -> rich.Table:
    """What each protection did to forgetting, and what came of the search, over seeds; at most 80 columns wide.

    Args:
        result: Records, all or some of those asked for.

    Returns:
        The table, for `rich.console.Console.print`.
    """
    unit, summary, trains = result.unit, result.summary(), result.config.trains_shared_weights
    parts = []
    if summary and trains:
        reduced = [reduction_cell(result, entry, REDUCTIONS[FORGETTING[0]], 0) for entry in summary]
        rows = [
            of_protection(entry["protection"], [*in_unit(result, entry, *FORGETTING), cell])
            for entry, cell in zip(summary, reduced, strict=True)
        ]
        title = f"Forgetting err₂ − err₁, {unit.name}, {epochs_text(result.forgetting_epochs)}"
        parts.append(Table(title, (*_LOSSES, "reduction of mean, %"), rows))
    if summary:
        test = "test error in nats per token" if unit.scale == 1 else "test error in %"
        title = f"\nReward ({unit.reward}) and {test}" if trains else test.capitalize()
        parts.append(_outcome(result, title, "time"))
    return in_terminal(parts, _notes(result))


def page_tables(result: SearchResult) -> list[Table]:
    """Forgetting, how much of it was prevented, and what came of the search."""
    if not result.summary():
        return []
    test = result.unit.name if result.unit.scale == 1 else "per cent"
    rewards = f"Reward: {result.unit.reward}, mean over {epochs_text(result.last_quarter)}. "
    note = f"Derived and random: test {result.unit.error} in {test} after training from scratch."
    if not result.config.trains_shared_weights:
        return [_outcome(result, "What came of it", "time, all seeds", note)]
    outcome = _outcome(result, "What came of it", "time, all seeds", rewards + note)
    return [_forgetting(result), *_reductions(result), outcome]


def in_unit(result: SearchResult, entry: Mapping[str, Any], *keys: str) -> list[str]:
    """Errors, or differences of errors, with their intervals."""
    return [plus_minus(entry[key], result.unit.decimals, result.unit.scale) for key in keys]


def reduction_cell(result: SearchResult, entry: Mapping[str, Any], key: str, decimals: int = 1) -> str:
    """A reduction, such as `75 [60, 85]` per cent; key is one of the values of REDUCTIONS.

    `none to reduce` where the unprotected searches do not forget; – where it is missing.
    """
    if entry[key] is not None:
        return bracketed(entry[key], decimals, 100)
    free = next((e for e in result.summary() if e["protection"] == BASELINE), None)
    forgets = next(name for name, reduced in REDUCTIONS.items() if reduced == key)
    is_idle = free is not None and free[forgets] is not None and free[forgets]["mean"] <= ROUNDING
    return NOTHING_TO_REDUCE if is_idle and entry["protection"] != BASELINE else NOTHING


def measured(result: SearchResult) -> dict[str, str]:
    """What may be forgotten: key → column."""
    part = {MULTI_MODEL: "multi-model part"} if result.has_multi_model_part else {}
    return dict(zip(FORGETTING, _LOSSES, strict=True)) | part


def _outcome(result: SearchResult, title: str, time: str, note: str = "") -> Table:
    rows = [
        of_protection(
            entry["protection"],
            [plus_minus(entry["reward"]), *in_unit(result, entry, *_OUTCOME), duration(entry["seconds"])],
        )
        for entry in result.summary()
    ]
    return Table(title, (*_COLUMNS, time), rows, note)


def _forgetting(result: SearchResult) -> Table:
    summary, columns = result.summary(), measured(result)
    interval = " ± is half the width of the 95 % interval over seeds." * _has_intervals(summary)
    rows = []
    for entry in summary:
        strength = or_nothing(result.config.options_of(entry["protection"]).strength_or_none)
        cells = [strength, *in_unit(result, entry, *columns), str(entry["num_diverged"])]
        rows.append(of_protection(entry["protection"], cells))
    heading = strength_heading(entry["protection"] for entry in summary)
    note = f"In {result.unit.name}, mean over {epochs_text(result.forgetting_epochs)}.{interval}"
    return Table("Forgetting", (heading, *columns.values(), "diverged"), rows, note)


def _reductions(result: SearchResult) -> list[Table]:
    """The table of what was prevented; none without an unprotected arm to compare with."""
    summary, columns = result.summary(), measured(result)
    held = [entry for entry in summary if entry["protection"] != BASELINE]
    if not held or len(held) == len(summary):
        return []
    rows = [
        of_protection(entry["protection"], [reduction_cell(result, entry, REDUCTIONS[key]) for key in columns])
        for entry in held
    ]
    interval = ", with its 95 % interval" * _has_intervals(held)
    note = f"Reduction against no protection in the same seeds and epochs, in per cent{interval}."
    return [Table("How much of it was prevented", tuple(columns.values()), rows, note)]


def _has_intervals(summary: Sequence[Mapping[str, Any]]) -> bool:
    return any(entry["num_seeds"] > 1 for entry in summary)


def _notes(result: SearchResult) -> list[str]:
    """How to read it, and what is missing."""
    summary, trains = result.summary(), result.config.trains_shared_weights
    notes = []
    done, wanted = result.progress
    if done < wanted:
        notes.append(f"Unfinished: {done} of {wanted} searches. Go on with `forgetless resume`.")
    seeds = max((entry["num_seeds"] for entry in summary), default=0)
    sign = " Negative forgetting is progress." * trains
    if seeds > 1:
        notes.append(f"± and [ ]: 95 % interval over {seeds} seeds.{sign}")
    elif seeds:
        notes.append(f"One seed gives no interval.{sign}")
    if not trains:
        return [*notes, f"Strategy {result.config.strategy_name}: no shared weights, no rewards, no forgetting."]
    if any(reduction_cell(result, entry, REDUCTIONS[FORGETTING[0]]) == NOTHING_TO_REDUCE for entry in summary):
        notes.append(f"{NOTHING_TO_REDUCE}: without protection the models do not forget on average.")
    if summary and BASELINE not in result.config.arms:
        notes.append("No reduction without an unprotected arm: take --controls.")
    if summary:
        notes.append(f"Reward: mean over {epochs_text(result.last_quarter)}. Time: over all seeds.")
    if parts := [f"{e['protection']} {in_unit(result, e, MULTI_MODEL)[0]}" for e in summary if e[MULTI_MODEL]]:
        notes.append(f"Multi-model part: {', '.join(parts)}.")
    if diverged := [f"{entry['protection']} {entry['num_diverged']}" for entry in summary if entry["num_diverged"]]:
        notes.append(f"Diverged models, left out: {', '.join(diverged)}.")
    return notes
