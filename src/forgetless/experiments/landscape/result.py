"""The records of a landscape, and their summary over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from forgetless.experiments.landscape.config import LandscapeConfig
from forgetless.experiments.landscape.records import ArmRecord, LandscapeRecord, SurfaceRecord
from forgetless.forgetting import mean_interval


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

    def summary(self) -> list[dict[str, Any]]:
        """One dict per protection and strength: means over the seeds that did not diverge, with 95 % intervals.

        Returns:
            Dicts in the order of the configuration; none for an arm without a seed.
        """
        groups: dict[tuple[str, float | None], list[ArmRecord]] = {}
        for arm in self.arms:
            groups.setdefault((arm.protection, arm.strength), []).append(arm)
        return [_summarise(arms) for arms in groups.values() if any(not arm.is_diverged for arm in arms)]


def measures(arm: ArmRecord) -> dict[str, float | None]:
    """What tables say of one arm that did not diverge.

    Args:
        arm: The arm.

    Returns:
        `loss_a_before`, `loss_a_after`, `loss_b`; `rise` of A's loss, measured, and `predicted`; `distance` of the
        shared weights from A's at the end; `share_of_length`: of the path's length, that of its projection on the
        plane; `share_of_end`: the same of the straight way to its end. A share of nothing is None.
    """
    assert arm.loss_a[0] is not None
    assert arm.loss_a[-1] is not None
    inside = ((arm.x[-1] or 0.0) ** 2 + (arm.y[-1] or 0.0) ** 2) ** 0.5
    distance = (inside**2 + (arm.outside[-1] or 0.0) ** 2) ** 0.5
    return {
        "accuracy_a_before": arm.accuracy_a_before,
        "accuracy_a_after": arm.accuracy_a_after,
        "accuracy_b": arm.accuracy_b,
        "loss_a_before": arm.loss_a[0],
        "loss_a_after": arm.loss_a[-1],
        "loss_b": arm.loss_b[-1],
        "rise": arm.loss_a[-1] - arm.loss_a[0],
        "predicted": arm.predicted[-1],
        "distance": distance,
        "share_of_length": (arm.length_in_plane or 0.0) / arm.length if arm.length else None,
        "share_of_end": inside / distance if distance else None,
    }


def _summarise(arms: Sequence[ArmRecord]) -> dict[str, Any]:
    found = [measures(arm) for arm in arms if not arm.is_diverged]

    def over_seeds(key: str) -> dict[str, float | None] | None:
        values = [each[key] for each in found]
        known = [value for value in values if value is not None]
        return dataclasses.asdict(mean_interval(known)) if known else None

    return {
        "protection": arms[0].protection,
        "strength": arms[0].strength,
        "num_seeds": len(found),
        "num_diverged": len(arms) - len(found),
        **{key: over_seeds(key) for key in found[0]},
        "seconds": sum(arm.seconds for arm in arms),
    }
