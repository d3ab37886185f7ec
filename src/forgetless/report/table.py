"""Tables: one description of columns and rows, for the terminal and for the page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from rich import box
from rich import table as rich
from rich.text import Text

from forgetless.report.canvas import colour
from forgetless.report.formats import label

_WIDTH = 80
BEST, BETTER, WORSE = "*", "✓", "✗"
_MARKS = {"better": (BETTER, "green"), "worse": (WORSE, "red"), None: ("", "")}


class Cell(NamedTuple):
    """A number with its interval, and what is to be said of it: what a test marks, and whether it is the best.

    Its marks stand behind it.
    """

    text: str
    mark: Literal["better", "worse"] | None = None
    is_best: bool = False

    @property
    def signs(self) -> str:
        """The marks as characters."""
        return BEST * self.is_best + _MARKS[self.mark][0]

    def __str__(self) -> str:
        return f"{self.text}{self.signs}"


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        name: In the terminal.
        cells: One per column.
        label: Its name on the page.
        colour: Beside it.
        is_chosen: Whether it is in bold.
        is_ranked: Whether it has a place among the others, which the page may show.
    """

    name: str
    cells: Sequence[str | Cell]
    label: str = ""
    colour: str = ""
    is_chosen: bool = False
    is_ranked: bool = True


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: Over it.
        columns: Their names, but for that of the first.
        rows: Its lines.
        note: Below the title on the page.
        first: The column of the rows' names.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    note: str = ""
    first: str = "protection"


def of_protection(protection: str, cells: Sequence[str | Cell], *, is_chosen: bool = False, name: str = "") -> Row:
    """A line that tells of a protection, called `name` on the page."""
    return Row(protection, cells, name or label(protection), colour(protection), is_chosen)


def table_of(title: str, entries: Sequence[Any], columns: Mapping[str, Callable[[Any], str]], note: str = "") -> Table:
    """A line for each entry, of the protection that it is of: column → what it shows of an entry."""
    rows = [of_protection(entry.protection, [cell(entry) for cell in columns.values()]) for entry in entries]
    return Table(title, tuple(columns), rows, note)


def in_terminal(parts: Sequence[Table], notes: Sequence[str], wrapped: str | None = None) -> rich.Table:
    """Tables one below the other, with a line between them, and notes, at most 80 columns wide.

    Where tables hardly fit, a column may be named that is the first to be broken; then all columns stand in line.
    """
    whole = rich.Table.grid()
    widths = _widths(parts, wrapped) if wrapped else {}
    for i, part in enumerate(parts):
        whole.add_row(Text("\n" * (i > 0) + part.title, style="bold"))
        padding = 0 if wrapped else (0, 1, 0, 0)
        table = rich.Table(box=box.SIMPLE_HEAD, padding=padding, pad_edge=False, show_edge=False)
        for name in (part.first, *part.columns):
            justify: Literal["left", "right"] = "left" if name == part.first else "right"
            table.add_column(name, justify=justify, width=widths.get(name), overflow="fold")
        columns = zip(*(row.cells for row in part.rows), strict=True)
        signs = [max(len(cell.signs) if isinstance(cell, Cell) else 0 for cell in column) for column in columns]
        for row in part.rows:
            table.add_row(row.name, *map(_shown, row.cells, signs), style="bold" if row.is_chosen else None)
        whole.add_row(table)
    whole.add_row(Text("\n".join(notes), style="dim"))
    return whole


def _shown(cell: str | Cell, signs: int) -> str | Text:
    """A cell whose marks take as much room as the most in its column, so that numbers stand in line."""
    if isinstance(cell, str):
        return cell
    return Text(f"{cell.text}{cell.signs:<{signs}}", _MARKS[cell.mark][1] + " bold" * cell.is_best)


def _widths(parts: Sequence[Table], wrapped: str) -> dict[str, int]:
    """The same in all tables, so that the columns stand in line; one gives way if they are too wide together."""
    widths: dict[str, int] = {}
    for part in parts:
        for i, name in enumerate((part.first, *part.columns)):
            found = [len((row.name, *row.cells)[i]) for row in part.rows]
            widths[name] = max(len(name), widths.get(name, 0), *found)
    excess = max(0, sum(widths.values()) + len(widths) - 1 - _WIDTH)
    return {**widths, wrapped: max(widths[wrapped] - excess, len(wrapped))} if widths else {}
