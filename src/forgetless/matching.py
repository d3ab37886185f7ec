"""Learning rates of the control arm: such that the shared weights move as far as under a protection, without its pull.

A search meets many models, and follows what earlier ones showed (`RunningMatch`). Where one training can be made again,
the rate is found by trying (`next_rate`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_NEWEST = 0.3  # share of the newest model in the running mean
_WITHIN = 0.05  # the mean step may differ by this much from the wanted one
_MOST_TRIES = 8


class RunningMatch:
    """The factor of a learning rate that makes the next model move as far as is wanted.

    The step grows with the rate, nearly in proportion; what a factor of 1 gives is a running mean over models.

    Attributes:
        scale: The factor.
        step_at_1: What a factor of 1 gives where no schedule changes the rate; 0 before the first model.
    """

    def __init__(self) -> None:
        self.scale = 1.0
        self.step_at_1 = 0.0

    def follow(self, wanted: float | None, scheduled: float = 1.0) -> None:
        """Set the factor for the next model.

        Args:
            wanted: How far it is to move; None leaves the factor as it is.
            scheduled: What a schedule multiplies the next model's rate by, its mean over batches.
        """
        if wanted is not None and self.step_at_1 * scheduled > 0:
            self.scale = wanted / (self.step_at_1 * scheduled)

    def learn(self, found: float, scheduled: float = 1.0) -> None:
        """Take in how far a model moved.

        Args:
            found: Not finite where it diverged.
            scheduled: What a schedule multiplied its rate by.
        """
        if not math.isfinite(found) or self.scale * scheduled <= 0:
            return
        share = 1.0 if self.step_at_1 == 0 else _NEWEST
        self.step_at_1 += share * (found / (self.scale * scheduled) - self.step_at_1)


def next_rate(first: float, wanted: float, found: Sequence[float]) -> float | None:
    """The learning rate to try next; None where the tries so far suffice.

    The rate is multiplied by wanted/found, within the bracket that the tries so far leave.

    Args:
        first: The rate of the first try.
        wanted: The mean step that is to be met.
        found: Mean steps of the tries so far, NaN where one diverged.

    >>> next_rate(0.1, 0.5, []), next_rate(0.1, 0.5, [1.0]), next_rate(0.1, 0.5, [1.0, 0.51])
    (0.1, 0.05, None)
    """
    low, high = 0.0, math.inf
    rate = first if wanted > 0 else 0.0
    for step in found:
        if abs(step - wanted) <= _WITHIN * wanted or step == 0:
            return None
        low, high = (rate, high) if step < wanted else (low, rate)  # a diverged try was at too high a rate
        proposed = rate * wanted / step
        if not low < proposed < high:
            proposed = math.sqrt(low * high) if low > 0 else high / 4
        rate = proposed
    return rate if len(found) < _MOST_TRIES else None


def closest(wanted: float, found: Sequence[float]) -> int:
    """Which of some mean steps is closest to the wanted one; diverged ones come last.

    Args:
        wanted: The mean step that is to be met.
        found: At least one; NaN where a try diverged.
    """
    return min(range(len(found)), key=lambda i: (math.isnan(found[i]), abs(found[i] - wanted)))
