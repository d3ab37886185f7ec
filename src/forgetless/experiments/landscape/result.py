"""The records of a landscape, and their summary over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from forgetless.experiments.landscape.config import LandscapeConfig
from forgetless.experiments.landscape.records import (
    ArmMeasures,
    ArmRecord,
    LandscapeRecord,
    LandscapeSummary,
    SurfaceRecord,
    places,
)
from forgetless.forgetting import interval_of_known


@dataclass(frozen=True)
class LandscapeResult:
    """The records made so far, and their summary over seeds.

    Attributes:
        config: What was asked.
        surfaces: Planes, by seed.
        arms: Trainings of B, by seed and in the order of the configuration.
    """

    config: LandscapeConfig
    surfaces: dict[int, SurfaceRecord]
    arms: list[ArmRecord]

    @classmethod
    def of(cls, config: LandscapeConfig, records: Sequence[LandscapeRecord]) -> Self:
        """The result that records tell of.

        Args:
            config: What was asked.
            records: As far as the run got.
        """
        surfaces = {record.seed: record for record in records if isinstance(record, SurfaceRecord)}
        return cls(config, surfaces, [record for record in records if isinstance(record, ArmRecord)])

    def summary(self) -> list[LandscapeSummary]:
        """One entry per protection and strength: means over the seeds that did not diverge, with 95 % intervals.

        Returns:
            Entries in the order of the configuration; none for an arm without a seed.
        """
        groups: dict[tuple[str, float | None], list[ArmRecord]] = {}
        for arm in self.arms:
            groups.setdefault((arm.protection, arm.strength), []).append(arm)
        return [_summarise(arms) for arms in groups.values() if any(not arm.is_diverged for arm in arms)]

    @property
    def num_seeds(self) -> int:
        """How many seeds have an arm."""
        return len({arm.seed for arm in self.arms})

    @property
    def progress(self) -> tuple[int, int]:
        """How many records are made, and how many are asked for."""
        return len(self.arms) + len(self.surfaces), len(places(self.config))


def _summarise(arms: Sequence[ArmRecord]) -> LandscapeSummary:
    found = [arm.measures for arm in arms if not arm.is_diverged]
    return LandscapeSummary(
        protection=arms[0].protection,
        strength=arms[0].strength,
        num_seeds=len(found),
        num_diverged=len(arms) - len(found),
        **{name: interval_of_known(getattr(each, name) for each in found) for name in ArmMeasures._fields},
        seconds=sum(arm.seconds for arm in arms),
    )
