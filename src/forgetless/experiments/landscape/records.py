"""The records of a landscape: per seed one of the plane with A's loss, then one of each arm."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from forgetless.experiments.landscape.config import LandscapeConfig
from forgetless.forgetting import Interval
from forgetless.records import Record, record_of
from forgetless.runs import RunFolder
from forgetless.schema import Number, expect_place

Numbers = list[Number]


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceRecord(Record):
    """The plane of a seed, and A's loss on it.

    Attributes:
        seed: (integer) Of A and of all its arms.
        x: (lengths) First coordinate of the grid's columns: along the way to the end of the first arm.
        y: (lengths) Second coordinate of its rows: along what is left of the way to the end of the last arm.
        loss_a: (nats) A's mean loss on the validation images with the shared weights of each point, row by row; A's
            other weights are as A was trained.
        form: (2 × 2 numbers) U diag(F) Uᵀ, (2, 2): A's loss is expected to rise by ½ pᵀ M p at the point p.
        loss_a_before: (nats) A's loss at its own weights, the origin.
        num_weights: (count) How many shared weights there are.
    """

    event: ClassVar[str] = "surface"

    seed: int
    x: list[float]
    y: list[float]
    loss_a: list[Numbers]
    form: list[list[float]]
    loss_a_before: Number
    num_weights: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRecord(Record):
    """One training of B: the path of the shared weights, and B's loss on the plane.

    All lists but `loss_b_surface` have an entry for each of `steps`; they are of the whole path, not of what the plane
    shows of it, but for `x` and `y`.

    Attributes:
        seed: (integer) Of A and of all its arms.
        protection: (text) Under which B trained.
        strength: (number or null) Of the protection; None if it has none.
        steps: (list of steps) Of B: 0, and the points of the path.
        x: (lengths) First coordinate of the path in the plane.
        y: (lengths) Second coordinate.
        outside: (lengths) Distance of the shared weights from the plane.
        loss_a: (nats) A's mean loss on the validation images.
        loss_b: (nats) B's, with B's own weights of that step.
        predicted: (nats) ½ Σ F (θ − θ̂)²: what the Fisher information expects A's loss to have risen by.
        length: (Euclidean length) Of the path, from point to point, in the space of all shared weights.
        length_in_plane: (Euclidean length) Of its projection.
        loss_b_surface: (nats) B's loss on the grid of the seed's plane, row by row, with B's own weights of its last
            step.
        accuracy_a_before: (fraction) A's test accuracy before B's training.
        accuracy_a_after: (fraction) A's test accuracy after it.
        accuracy_b: (fraction) B's test accuracy after it.
        seconds: (seconds) Wall clock of B's training. It alone differs between two runs of the same command.
    """

    event: ClassVar[str] = "arm"

    seed: int
    protection: str
    strength: Number
    steps: list[int]
    x: Numbers
    y: Numbers
    outside: Numbers
    loss_a: Numbers
    loss_b: Numbers
    predicted: Numbers
    length: Number
    length_in_plane: Number
    loss_b_surface: list[Numbers]
    accuracy_a_before: Number
    accuracy_a_after: Number
    accuracy_b: Number
    seconds: float

    @property
    def is_diverged(self) -> bool:
        """Whether it ended without finite weights or losses."""
        return None in {self.x[-1], self.loss_a[-1], self.loss_b[-1], self.accuracy_a_after, self.accuracy_b}

    @property
    def measures(self) -> "ArmMeasures":
        """What tables say of it; it did not diverge."""
        assert self.loss_a[0] is not None
        assert self.loss_a[-1] is not None
        inside: float = ((self.x[-1] or 0.0) ** 2 + (self.y[-1] or 0.0) ** 2) ** 0.5
        distance: float = (inside**2 + (self.outside[-1] or 0.0) ** 2) ** 0.5
        return ArmMeasures(
            accuracy_a_before=self.accuracy_a_before,
            accuracy_a_after=self.accuracy_a_after,
            accuracy_b=self.accuracy_b,
            loss_a_before=self.loss_a[0],
            loss_a_after=self.loss_a[-1],
            loss_b=self.loss_b[-1],
            rise=self.loss_a[-1] - self.loss_a[0],
            predicted=self.predicted[-1],
            distance=distance,
            share_of_length=(self.length_in_plane or 0.0) / self.length if self.length else None,
            share_of_end=inside / distance if distance else None,
        )


class ArmMeasures(NamedTuple):
    """What tables say of an arm that did not diverge; a share of nothing is None.

    Attributes:
        accuracy_a_before: A's test accuracy before B's training.
        accuracy_a_after: The same after it.
        accuracy_b: B's test accuracy after it.
        loss_a_before: A's mean loss on the validation images before B's training.
        loss_a_after: The same after it.
        loss_b: B's mean loss on them after it.
        rise: Of A's loss.
        predicted: What the Fisher information expected of it.
        distance: Of the shared weights from A's, at the end.
        share_of_length: Of the path's length, that of its projection on the plane.
        share_of_end: The same of the straight way to its end.
    """

    accuracy_a_before: float | None
    accuracy_a_after: float | None
    accuracy_b: float | None
    loss_a_before: float
    loss_a_after: float
    loss_b: float | None
    rise: float
    predicted: float | None
    distance: float
    share_of_length: float | None
    share_of_end: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LandscapeSummary(Record):
    """What an arm did, over the seeds in which it did not diverge.

    Attributes:
        protection: (text) Of its records.
        strength: (number or null) Of its records.
        num_seeds: (count) Seeds that it is over.
        num_diverged: (count) Seeds that are left out.
        accuracy_a_before: (fraction) Interval over seeds, as all up to `seconds`; null where no seed has a value.
        accuracy_a_after: (fraction) Over seeds.
        accuracy_b: (fraction) Over seeds.
        loss_a_before: (nats) First of `loss_a`.
        loss_a_after: (nats) Last of `loss_a`.
        loss_b: (nats) Last of `loss_b`.
        rise: (nats) `loss_a_after − loss_a_before`.
        predicted: (nats) Last of `predicted`.
        distance: (Euclidean length) Of the shared weights from A's, at the end.
        share_of_length: (share; 1 is all) `length_in_plane / length`; null for a path without length.
        share_of_end: (share; 1 is all) The same of the straight way to the end.
        seconds: (seconds) Sum over its records.
    """

    protection: str
    strength: Number
    num_seeds: int
    num_diverged: int
    accuracy_a_before: Interval | None
    accuracy_a_after: Interval | None
    accuracy_b: Interval | None
    loss_a_before: Interval | None
    loss_a_after: Interval | None
    loss_b: Interval | None
    rise: Interval | None
    predicted: Interval | None
    distance: Interval | None
    share_of_length: Interval | None
    share_of_end: Interval | None
    seconds: float


LandscapeRecord = SurfaceRecord | ArmRecord

_KINDS: dict[str, type[LandscapeRecord]] = {kind.event: kind for kind in (SurfaceRecord, ArmRecord)}

Place = tuple[int, str, float | None]
"""Seed, protection and strength; of a plane seed, nothing and None."""


def place_of(record: LandscapeRecord) -> Place:
    """Which of the records of a configuration it is.

    Args:
        record: Any.
    """
    return (
        (record.seed, record.protection, record.strength) if isinstance(record, ArmRecord) else (record.seed, "", None)
    )


def places(config: LandscapeConfig) -> list[Place]:
    """The records that a configuration makes, in their order.

    Args:
        config: The configuration.
    """
    own: dict[int, list[Place]] = {seed: [(seed, "", None)] for seed in config.run.all_seeds}
    for arm in config.arms:
        own[arm.seed].append((arm.seed, arm.protection, arm.strength))
    return [place for each in own.values() for place in each]


def _record(values: Mapping[str, Any], where: str) -> LandscapeRecord:
    found: LandscapeRecord = record_of(values, _KINDS, "landscape", where)
    return found


def read_records(config: LandscapeConfig, folder: RunFolder) -> list[LandscapeRecord]:
    """The records of a landscape's folder.

    Args:
        config: Of the folder.
        folder: The folder.

    Returns:
        As far as the run got.

    Raises:
        InputError: If a line is damaged, no record, of an arm that was not asked for, or doubled.
    """
    allowed, seen = dict.fromkeys(places(config), 1), dict[Any, int]()
    found: list[LandscapeRecord] = []
    for record, where in folder.read_records(_record):
        place = place_of(record)
        what = f"{record.event} {place[1]} {'' if place[2] is None else place[2]}".strip()
        expect_place(place, allowed, seen, f"{what} of seed {record.seed}", where)
        found.append(record)
    return found
