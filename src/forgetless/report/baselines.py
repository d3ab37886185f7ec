"""The tables of rules without a search: what they select, and which searches beat them; for both commands."""

from collections.abc import Callable, Mapping, Sequence

from forgetless.evaluation.records import BaselineSummary, Beats, UndefinedRule
from forgetless.report.formats import NOTHING, plus_minus, probability
from forgetless.report.table import Cell, Row, Table

_REFERENCES = ("random", "parameters", "best proxy")
_COLUMNS: Mapping[str, tuple[str, bool]] = {  # title → field, and whether it is in the unit of the truth
    "mean": ("found_mean", True),
    "best": ("found_best", True),
    "regret": ("regret", True),
    "τ": ("tau", False),
    "τ top": ("tau_top", False),
}


def beats_table(
    beats: Sequence[Beats],
    name: Callable[[Beats], str],
    digits: int,
    scale: float = 1.0,
    first: str = "search",
    look: Callable[[Beats], tuple[str, str]] = lambda each: ("", ""),  # noqa: ARG005
) -> Table | None:
    """By how much each search beats each reference, with the corrected p, and which of them significantly.

    Args:
        beats: Of an evaluation or a comparison.
        name: What a row is called.
        digits: Of gains.
        scale: Of gains.
        first: The column of the rows' names.
        look: What a row is called on the page, and its colour there.

    Returns:
        The table; None where nothing was tested.
    """
    if not beats:
        return None
    rows: dict[str, dict[str, Beats]] = {}
    for each in beats:
        rows.setdefault(name(each), {})[each.rule] = each
    shown = [rule for rule in _REFERENCES if any(rule in of_row for of_row in rows.values())]
    lines = []
    for row, found in rows.items():
        cells = [_gain(found.get(rule), digits, scale) for rule in shown]
        beaten = [rule for rule in shown if rule in found and found[rule].mark == "better"]
        any_of = next(iter(found.values()))
        lines.append(Row(row, [*cells, Cell(", ".join(beaten) or "none")], *look(any_of)))
    return Table("Gain of the mean over rules without a search (p)", (*shown, "beats"), lines, first=first)


def _gain(test: Beats | None, digits: int, scale: float) -> Cell:
    if test is None:
        return Cell(NOTHING)
    gain = f"{scale * test.gain.mean:+.{digits}f}".replace("-", "−")
    return Cell(f"{gain} ({probability(test.adjusted_p)})", test.mark)


def baselines_table(summaries: Sequence[BaselineSummary], digits: int, scale: float = 1.0) -> Table | None:
    """What each rule selects, the best first.

    Args:
        summaries: Of `summarise_baselines`.
        digits: Of what is in the unit of the truth.
        scale: Of the same.

    Returns:
        The table; None without any.
    """
    if not summaries:
        return None
    lines = [
        Row(
            each.rule,
            [
                Cell(plus_minus(getattr(each, field), digits if is_quality else 2, scale if is_quality else 1.0))
                for field, is_quality in _COLUMNS.values()
            ],
            label=each.rule,
        )
        for each in summaries
    ]
    return Table("What rules without a search select", tuple(_COLUMNS), lines, first="rule")


def baseline_notes(beats: Sequence[Beats], undefined: Sequence[UndefinedRule]) -> list[str]:
    """How to read these tables, and which rules have no score.

    Args:
        beats: Of an evaluation or a comparison.
        undefined: Rule and reason.
    """
    if not beats:
        return []
    notes = ["Gain: positive is better. p: sign flips over seeds, Holm over its table."]
    if any(each.rule == "best proxy" for each in beats):
        notes.append("Best proxy: the rule whose selection was best on all other seeds.")
    reasons: dict[str, list[str]] = {}
    for rule, reason in undefined:
        reasons.setdefault(reason, []).append(rule)
    return [*notes, *(f"No {', '.join(rules)}: {reason}" for reason, rules in reasons.items())]
