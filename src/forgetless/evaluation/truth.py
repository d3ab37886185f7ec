"""Ground truth: the published or measured quality of the architectures of a space, read from one CSV file.

A truth file has a header, a column `arch` or `architecture`, and columns of numbers: docs/truth-files.md has the
format. Two kinds are known by their columns: the accuracies of NAS-Bench-201 (Dong and Yang 2020, arXiv:2001.00326),
and the benchmarks shipped with this package, which are found by name.
"""

import itertools
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, cast

import numpy as np
from numpy.typing import NDArray

from forgetless.errors import InputError, expect_one_of
from forgetless.evaluation.ranking import regret
from forgetless.evaluation.records import Ceiling
from forgetless.evaluation.resolution import STATISTICS, Statistic, Trainings, ceiling_of, seed_columns
from forgetless.evaluation.table import Table, read_table
from forgetless.spaces import SPACES, Space
from forgetless.spaces.base import A

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
"""Where the shipped benchmarks lie, one `<name>.csv` each."""

ARCHITECTURE_COLUMNS = ("architecture", "arch")
GROUP_COLUMN = "iso_group"

DEFAULT_COLUMNS = ("cifar10_test", "test_error")
"""What is the truth where no column is named: the test column of each known kind of file, or a median over seeds."""

# What the names of columns have that are better the lower they are, in small letters.
_LOWER_IS_BETTER = re.compile(
    r"error|loss|perplexity|entropy|(^|[^a-z])(err|ppl|nll|bpc|bpb|r?mse|mae|wer|cer|fid)([^a-z]|$)|_(std|diverged)$"
)

# Numbers about an architecture that say nothing of how good it is.
_OTHER_COLUMNS = ("index", GROUP_COLUMN, "parameters", "seconds", "num_diverged")


@dataclass(frozen=True, eq=False)
class Truth(Generic[A]):
    """The quality of every, or some, architecture of a space.

    Columns of NAS-Bench-201 that end in `_12ep` are accuracies after 12 epochs of training: another quantity than the
    200-epoch columns without that ending. They may be asked for by name, and `description` then says so.

    Args:
        space: Where the architectures come from.
        architectures: n different ones, in the file's order.
        values: (n,) as in the file, in the column's unit; finite.
        groups: (n,) equal for architectures that are the same function.
        column: The name of the column. One that names an error or a loss (`Error`, `test_loss`, `perplexity`, `ppl`,
            `nll`, `mse`, …) is better the lower it is, any other the higher; `description` says which.
        source: The file, for messages.
        about: What the file says of itself: its leading lines `# key: value`.
        trainings: What the values are the mean, median or the like of; None where the file has but one number of each.

    Raises:
        InputError: If there are no architectures, one is repeated or not of the space, a value is not finite, or the
            lengths differ.

    >>> from forgetless.spaces.recurrent import RecurrentSpace
    >>> cells = tuple(RecurrentSpace(1))
    >>> truth = Truth(RecurrentSpace(1), cells, np.array([0.5, 0.2, 0.3, 0.4]), np.arange(4), "test_error", "a table")
    >>> print(truth.best_architecture, truth.best_value, round(truth.regret(cells[2]), 9), truth.quality(cells[2]))
    relu(0) 0.2 0.1 -0.3
    >>> truth.description
    'test_error of a table: 4 of the 4 architectures of its space, 4 structurally unique; smaller is better.'
    """

    space: Space[A]
    architectures: tuple[A, ...]
    values: NDArray[np.float64]
    groups: NDArray[np.intp]
    column: str
    source: str
    about: dict[str, str] = field(default_factory=dict)
    trainings: Trainings | None = None

    def __post_init__(self) -> None:
        n = len(self.architectures)
        if not n or self.values.shape != (n,) or self.groups.shape != (n,):
            raise InputError(
                f"Expected one value and one group per architecture in {self.source}, but got {n} architectures, "
                f"{len(self.values)} values and {len(self.groups)} groups. Give at least one of each."
            )
        if not np.isfinite(self.values).all():
            raise InputError(f"Expected finite values in {self.column} of {self.source}. Leave out what diverged.")
        if len(self._positions) < n:
            raise InputError(f"Expected every architecture once in {self.source}, but got a repeated one. Merge them.")
        for architecture in self.architectures:
            self.space.encode(architecture)

    def __len__(self) -> int:
        return len(self.architectures)

    def __contains__(self, architecture: object) -> bool:
        return architecture in self._positions

    @cached_property
    def _positions(self) -> dict[Any, int]:
        return {architecture: position for position, architecture in enumerate(self.architectures)}

    @property
    def lower_is_better(self) -> bool:
        """Whether the column holds errors or losses."""
        return _LOWER_IS_BETTER.search(self.column.lower()) is not None

    @cached_property
    def qualities(self) -> NDArray[np.float64]:
        """(n,) The values with larger = better: errors have their sign changed."""
        return -self.values if self.lower_is_better else self.values

    @cached_property
    def ceiling(self) -> Ceiling | None:
        """How well one half of the trainings ranks as the other does; None where that is not known."""
        if self.trainings is None:
            return None
        return ceiling_of(self.trainings, self.groups, lower_is_better=self.lower_is_better)

    @property
    def best_architecture(self) -> A:
        """The best one; of equal ones the first in the file."""
        return self.architectures[int(self.qualities.argmax())]

    @property
    def best_value(self) -> float:
        """Its value, in the column's unit."""
        return float(self.values[self.qualities.argmax()])

    @property
    def num_unique(self) -> int:
        """How many structurally different architectures there are: groups."""
        return len(np.unique(self.groups))

    @property
    def is_complete(self) -> bool:
        """Whether every architecture of the space is there."""
        return len(self) == self.space.size

    @property
    def description(self) -> str:
        """What this truth is, in a sentence or two."""
        text = (
            f"{self.column} of {self.source}: {len(self):,} of the {self.space.size:,} architectures of its space, "
            f"{self.num_unique:,} structurally unique; {'smaller' if self.lower_is_better else 'larger'} is better."
        )
        if short := re.search(r"_(\d+)ep$", self.column):
            text += f" After {short[1]} epochs of training: not the quantity of the columns without that ending."
        return text

    def positions(self, architectures: Iterable[A]) -> NDArray[np.intp]:
        """Where architectures stand: `truth.qualities[truth.positions(found)]`, and so for `values` and `groups`.

        Args:
            architectures: Members of the truth; repeated ones are allowed.

        Returns:
            (len(architectures),) indices.

        Raises:
            InputError: If one is not in the truth.
        """
        return np.array([self._position(architecture) for architecture in architectures], dtype=np.intp)

    def quality(self, architecture: A) -> float:
        """The quality of one architecture, larger = better whatever the column.

        Args:
            architecture: A member of the truth.

        Returns:
            Its value, with the sign changed for errors.

        Raises:
            InputError: If it is not in the truth.
        """
        return float(self.qualities[self._position(architecture)])

    def regret(self, architecture: A) -> float:
        """How much better the best architecture is.

        Args:
            architecture: A member of the truth.

        Returns:
            |best value − its value| ≥ 0, in the column's unit.

        Raises:
            InputError: If it is not in the truth.
        """
        return regret(self.quality(architecture), float(self.qualities.max()))

    def _position(self, architecture: A) -> int:
        position = self._positions.get(architecture)
        if position is None:
            raise InputError(
                f"Expected an architecture that {self.source} has, but got '{architecture}'. It has {len(self):,} of "
                f"the {self.space.size:,} of {self.space}. Search the space that the file covers, or name another file."
            )
        return position


# ---- reading -----------------------------------------------------------------------------------------------------


def read_truth(path_or_name: str | Path, space: Space[A], column: str | None = None) -> Truth[A]:
    """Read a truth file, or a benchmark shipped with this package.

    Args:
        path_or_name: An existing CSV file, separated by commas, semicolons or tabs, or else the name of a shipped
            benchmark, or of a table that the space knows (`Space.published_table`).
        space: The space that its architectures are of.
        column: Which quality. None takes the test column of a known kind of file, `cifar10_test` (NAS-Bench-201 after
            200 epochs, per cent) or `test_error` (ours), or the only column of qualities that there is. The columns
            of NAS-Bench-201 that end in `_12ep` are another quantity (see `Truth`). Where a file has a column per
            training seed, such as `test_error_seed0`, there are `test_error_mean`, `…_median` (the default), `…_std`
            and `…_diverged`; `mean`, `median`, `std` and `diverged` are those of the test error, or of the only
            quality with such columns.

    Returns:
        The truth, with architectures in the file's order; without a column `iso_group` every architecture is its own
        group.

    Raises:
        InputError: If there is no such file or benchmark, it is empty, has no column of architectures or not this one,
            or a line of it is wrong: an architecture that is not of the space or was there before, a number that is
            none. With the line's number.
    """
    table = read_table(_resolve(path_or_name, space))
    column = _choose_column(table, column)
    architectures = _parse_architectures(table, space)
    trainings = _trainings(table, column)
    values = table.numbers(column) if trainings is None else trainings.over()
    if GROUP_COLUMN in table.header:
        names: dict[str, int] = {}
        groups = np.array([names.setdefault(cell.strip(), len(names)) for _, cell in table.cells(GROUP_COLUMN)])
    else:
        groups = np.arange(len(architectures))
    return Truth(space, architectures, values, groups, column, table.path.name, table.about, trainings)


def benchmark_names() -> tuple[str, ...]:
    """The names of the benchmarks shipped with this package, in alphabetical order."""
    return tuple(sorted(path.stem for path in BENCHMARKS.glob("*.csv")))


def _resolve(path_or_name: str | Path, space: Space[Any]) -> Path:
    path = Path(path_or_name)
    if path.is_dir():
        raise InputError(f"Expected a truth file, but got the folder {path}. Name the CSV file in it.")
    if path.exists():
        return path
    known = benchmark_names()
    if str(path_or_name) in known:
        return BENCHMARKS / f"{path_or_name}.csv"
    published = space.published_table(str(path_or_name))
    if published is not None:
        return published
    raise InputError(
        f"Expected a CSV file or the name of a benchmark ({', '.join(known) or 'none is installed'}), but got "
        f"'{path_or_name}', and there is no such file. Check the path."
    )


def _choose_column(table: Table, column: str | None) -> str:
    seeds = seed_columns(table.header)
    no_quality = {*ARCHITECTURE_COLUMNS, *_OTHER_COLUMNS, *itertools.chain(*seeds.values())}
    qualities = [name for name in table.header if name not in no_quality and not name.endswith("_std")]
    qualities += [f"{quality}_{statistic}" for quality in seeds for statistic in STATISTICS]
    quality = _default_quality(seeds)
    if column in STATISTICS and column not in table.header and quality is not None:
        column = f"{quality}_{column}"
    if column is not None:
        expect_one_of(f"the column of {table.path}", column, qualities)
        return column
    for name in DEFAULT_COLUMNS:
        if name in qualities:
            return name
    if quality is not None:
        return f"{quality}_median"
    if len(qualities) != 1:
        raise InputError(
            f"Expected {' or '.join(DEFAULT_COLUMNS)}, or one column of qualities, in {table.path}, but got "
            f"{', '.join(qualities) or 'none'}. Name the column that is the truth."
        )
    return qualities[0]


def _default_quality(seeds: Iterable[str]) -> str | None:
    """The quality, of those with a column per seed, that `median` alone is of; None where that is not clear."""
    known = tuple(seeds)
    return "test_error" if "test_error" in known else known[0] if len(known) == 1 else None


def _trainings(table: Table, column: str) -> Trainings | None:
    """The trainings that a derived column is over; None for a column of the file."""
    quality, _, statistic = column.rpartition("_")
    columns = seed_columns(table.header).get(quality)
    if column in table.header or columns is None:
        return None
    values = np.stack([table.numbers(name, are_finite=False) for name in columns], axis=1)
    text = table.about.get("guessing", "nan")
    try:
        guessing = float(text)
    except ValueError:
        raise InputError(f"Expected a number on the line `# guessing:` of {table.path}, but got {text!r}.") from None
    try:
        return Trainings(values, cast("Statistic", statistic), guessing)
    except InputError as error:
        raise InputError(f"{table.path}: {error}") from None


def _parse_architectures(table: Table, space: Space[A]) -> tuple[A, ...]:
    column = next((name for name in ARCHITECTURE_COLUMNS if name in table.header), None)
    if column is None:
        raise InputError(
            f"Expected a column {' or '.join(ARCHITECTURE_COLUMNS)} in {table.path}, but got "
            f"{', '.join(table.header)}. Put a header on the first line."
        )
    # Of a table of most of a space, looking a text up takes a quarter of the time of parsing it.
    known = {str(member): member for member in space} if space.size <= 2 * len(table.rows) else {}
    seen: dict[A, int] = {}
    for line, text in table.cells(column):
        try:
            architecture = known[text] if text in known else space.parse(text)
        except InputError as error:
            _expect_same_space(table.path, line, text, space, is_first=not seen)
            raise InputError(f"{table.path}, line {line}: {error}") from error
        if architecture in seen:
            raise InputError(
                f"Expected every architecture once in {table.path}, but got '{architecture}' on lines "
                f"{seen[architecture]} and {line}. Merge the two."
            )
        seen[architecture] = line
    return tuple(seen)


def _expect_same_space(path: Path, line: int, text: str, space: Space[A], *, is_first: bool) -> None:
    """Refuse the text if it is an architecture of another space.

    After the first, only of the same space with more operations: other texts are mistakes in a line.
    """
    for other in (kind.like(text) for kind in SPACES.values()):
        is_alike = type(other) is type(space) and len(other.num_choices) == len(space.num_choices)
        if not (is_first or is_alike):
            continue
        with suppress(InputError):
            other.parse(text)
            shown = text.strip() if len(text) <= 160 else text.strip()[:160] + "…"
            message = (
                f"Expected a truth file for {space}, but got {path}, which is for another space: line {line} has "
                f"'{shown}', of {other}. Name the truth file of the space that is searched."
            )
            break
    else:
        return
    raise InputError(message)
