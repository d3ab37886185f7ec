"""What rankings are read beside: how well a truth ranks itself."""

from collections.abc import Sequence

from forgetless.evaluation.records import Ceiling, JudgedBy
from forgetless.report.formats import NOTHING, counted
from forgetless.report.table import Row

NAME, LABEL = "ceiling", "half-split ceiling"
"""Of the line, in the terminal and on the page."""

_FIELDS = {"τ": "tau", "τ unique": "tau_unique", "τ top": "tau_top"}


def ceiling_rows(about: JudgedBy | None, columns: Sequence[str]) -> list[Row]:
    """The last line of a table of rankings: τ between two halves of the truth's training seeds.

    Args:
        about: What searches were judged by.
        columns: Of the table; those that are no τ stay empty.

    Returns:
        One line; none where the ceiling is not known.
    """
    if about is None or about.ceiling is None:
        return []
    return [Row(NAME, [_cell(about.ceiling, column) for column in columns], label=LABEL, is_ranked=False)]


def _cell(ceiling: Ceiling, column: str) -> str:
    tau = getattr(ceiling, _FIELDS[column]) if column in _FIELDS else None
    return NOTHING if tau is None else f"{tau:.2f}".replace("-", "−")


def ceiling_notes(about: JudgedBy | None) -> list[str]:
    """How to read that line, or why there is none.

    Args:
        about: What searches were judged by.
    """
    if about is None or about.options.get("truth") is None:
        return []
    if (ceiling := about.ceiling) is None:
        return ["Ceiling of τ: unknown, as the truth has one number per architecture."]
    halves = f"{ceiling.half} and {ceiling.half} other seeds of the truth's {ceiling.num_seeds}"
    return [
        f"Ceiling (half-split): τ between {halves},",
        f"mean over {counted(ceiling.num_splits, 'split')}: a lower bound of what a ranking can reach.",
    ]
