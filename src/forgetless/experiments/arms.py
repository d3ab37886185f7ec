"""What experiments have in common whose records are arms: a run to make is a line of the file and one of the result."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from forgetless.checkpoints import Checkpoints, seconds_of
from forgetless.schema import expect_place

if TYPE_CHECKING:
    from forgetless.experiments.base import RunKind
    from forgetless.progress import OnProgress
    from forgetless.runs import RunFolder


class ArmLike(Hashable, Protocol):
    """One run to make."""

    @property
    def told(self) -> str:
        """In words, for an error, such as `wpl α=1, seed 0`."""


class ArmRecord(Protocol):
    """What was found of it."""

    @property
    def arm(self) -> Any:
        """Which run it is of."""

    @property
    def is_diverged(self) -> bool:
        """Whether it ended without finite numbers."""

    def to_dict(self) -> dict[str, Any]:
        """The line of the file."""

    @classmethod
    def from_dict(cls, values: Any, what: str, where: str) -> Self:
        """What `to_dict` was called on."""


C = TypeVar("C")
A = TypeVar("A", bound=ArmRecord)
S = TypeVar("S")


@dataclass(frozen=True)
class ArmsResult(ABC, Generic[C, A, S]):
    """The runs made so far, and their summary over seeds.

    Attributes:
        config: What was asked.
        runs: One per arm.
        diverged: Those that ended without finite numbers; they are in no mean.
    """

    config: C
    runs: list[A]
    diverged: list[A] = field(default_factory=list)

    @classmethod
    def of(cls, config: C, records: Sequence[A]) -> Self:
        """The result that records tell of, those that diverged apart.

        Args:
            config: What was asked.
            records: Of finished arms.
        """
        return cls(config, [r for r in records if not r.is_diverged], [r for r in records if r.is_diverged])

    @property
    @abstractmethod
    def wanted(self) -> Sequence[ArmLike]:
        """What the configuration asks for."""

    @property
    def progress(self) -> tuple[int, int]:
        """How many runs are finished, and how many the configuration asks for."""
        made = {run.arm for run in [*self.runs, *self.diverged]}
        return sum(arm in made for arm in self.wanted), len(self.wanted)

    def summary(self) -> list[S]:
        """One entry per arm but for its seed: means with 95 % intervals over seeds.

        Returns:
            Entries in the order of the configuration; none for an arm whose every seed diverged.
        """
        return self._summary

    @functools.cached_property
    def _summary(self) -> list[S]:
        return self._summarised()

    @abstractmethod
    def _summarised(self) -> list[S]:
        """The summary."""


def grouped(runs: Sequence[A], key: Callable[[A], Hashable]) -> dict[Hashable, list[A]]:
    """Runs by what they share, in the order of the first of each.

    Args:
        runs: Any.
        key: What they share.
    """
    groups: dict[Hashable, list[A]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def read_arms(folder: RunFolder, experiment: str, kind: type[A], wanted: Sequence[ArmLike]) -> list[A]:
    """The records of a run's folder.

    Args:
        folder: The folder.
        experiment: Whose it is, for the message.
        kind: Of its records.
        wanted: The arms that its configuration asks for.

    Returns:
        As far as the run got.

    Raises:
        InputError: If a line is damaged, no record, of an arm that was not asked for, or doubled.
    """
    records = []
    allowed, seen = dict.fromkeys(wanted, 1), dict[Any, int]()
    read = functools.partial(kind.from_dict, what=f"a record of {experiment}")
    for record, where in folder.read_records(read):
        expect_place(record.arm, allowed, seen, record.arm.told, where)
        records.append(record)
    return records


def in_order(records: Sequence[A], wanted: Sequence[ArmLike]) -> list[A]:
    """Records in the order of the arms.

    Args:
        records: Each of one of the arms.
        wanted: The arms.
    """
    place = {arm: i for i, arm in enumerate(wanted)}
    return sorted(records, key=lambda record: place[record.arm])


def make_in_folder(
    run: Callable[..., object],
    kind: type[RunKind[Any, Any]],
    config: Any,
    folder: RunFolder,
    on_progress: OnProgress | None,
) -> None:
    """Make what a run folder lacks of its runs.

    Args:
        run: What makes those that are not finished.
        kind: How the folder is read.
        config: Of the folder.
        folder: Where records and checkpoints are, and go.
        on_progress: Called now and then while training.

    Raises:
        InputError: As `run`; or if a record is damaged.
    """
    run(
        config,
        finished=kind.read(config, folder),
        checkpoint=folder.load_checkpoint(),
        on_run=lambda record: folder.append(record.to_dict()),
        on_progress=on_progress,
        checkpoints=Checkpoints(folder.save_checkpoint, seconds_of(config.resources.checkpoint_every)),
    )
