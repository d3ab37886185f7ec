"""The cells of a truth file, with the lines that they are on."""

import csv
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from forgetless.errors import InputError


class Table(NamedTuple):
    """The cells of a file, as text, with the numbers of their lines from 1."""

    path: Path
    about: dict[str, str]
    header: list[str]
    lines: list[int]
    rows: list[list[str]]

    def cells(self, column: str) -> Iterator[tuple[int, str]]:
        """(line, cell) of each row."""
        position = self.header.index(column)
        return ((line, row[position]) for line, row in zip(self.lines, self.rows, strict=True))

    def numbers(self, column: str, *, are_finite: bool = True) -> NDArray[np.float64]:
        """The cells of a column as numbers.

        Args:
            column: Its name.
            are_finite: Whether `inf` and `nan` are mistakes; else they tell of a training that diverged.

        Returns:
            (rows,)

        Raises:
            InputError: If a cell is no number, with its line.
        """
        return np.array([self._number(line, column, cell, are_finite=are_finite) for line, cell in self.cells(column)])

    def _number(self, line: int, column: str, cell: str, *, are_finite: bool) -> float:
        number: float | None
        try:
            number = float(cell)
        except ValueError:
            number = None
        if number is None or (are_finite and not math.isfinite(number)):
            raise InputError(
                f"Expected a {'finite ' * are_finite}number in column {column} on line {line} of {self.path}, but got "
                f"'{cell.strip()}'. Mend the line, or leave the architecture out."
            )
        return number


def read_table(path: Path) -> Table:
    """Read a file: comment lines `# key: value`, a header, rows; separated by commas, semicolons or tabs.

    Args:
        path: Of the file.

    Returns:
        Its cells.

    Raises:
        InputError: If it cannot be read, is empty, two columns have one name, or a row has too few or many cells.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _parsed(path, file)
    except OSError as error:
        raise InputError(f"Expected to read the truth file {path}, but got: {error.strerror}.") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"Expected a truth file of comma-separated text, but got {path}: {error}.") from error


def _parsed(path: Path, file: TextIO) -> Table:
    about, num_comments, first = {}, 0, file.readline()
    while first.startswith("#"):
        key, colon, value = first[1:].partition(":")
        if colon:
            about[key.strip()] = value.strip()
        num_comments, first = num_comments + 1, file.readline()
    separator = max(",;\t", key=first.count)  # the first of equally many
    reader = csv.reader(itertools.chain([first], file), delimiter=separator)
    header = [name.strip() for name in next(reader, [])]
    numbered = [(num_comments + reader.line_num, row) for row in reader if row]
    if not numbered:
        raise InputError(f"Expected a header and one line per architecture in {path}, but got an empty file.")
    if len(set(header)) < len(header):
        raise InputError(f"Expected different column names in {path}, but got {', '.join(header)}. Rename one.")
    for line, row in numbered:
        if len(row) != len(header):
            raise InputError(
                f"Expected {len(header)} cells on line {line} of {path}, like its header, but got {len(row)}. Mend the "
                "line."
            )
    return Table(path, about, header, [line for line, _ in numbered], [row for _, row in numbered])
