"""The multiplier λ of a constraint on the old loss, found while training goes on."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

_GAIN = 0.05
"""How far log λ moves per step, as a share of the logarithm of increase over budget."""

_AIM = 1.25
"""The increase that λ aims at, over the budget: a short way back costs nothing, what is not used is lost."""

_MOST = 2.0
"""That logarithm counts within ± this."""

_SMALLEST, _LARGEST = 1e-2, 1e4
_MEMORY = 0.9
"""The mean increase on batches forgets at this rate."""

_LEAST_RATIO, _MOST_RATIO = 0.5, 4.0


@dataclass
class Multiplier:
    """λ of: minimise L_new subject to increase ≤ budget. It is found by ascent of its logarithm.

        log λ ← log λ + 0.05 · clip(log(ρ · increase / (1.25 · budget)), ±2)

    after each step, with the increase on the step's own batch of old examples. ρ is the ratio of the increase on
    examples that training does not see to that on those that it sees; it is above 1 where they are learnt by heart.

    Attributes:
        nats: The budget.
        value: λ.
        recent: Mean increase on the batches of the last ten steps or so.
        ratio: ρ.

    >>> multiplier = Multiplier(0.05)
    >>> multiplier.follow(0.1)
    >>> round(multiplier.value, 4)  # 1.6^0.05
    1.0238
    """

    nats: float
    value: float = 1.0
    recent: float = 0.0
    ratio: float = 1.0

    def follow(self, increase: float) -> None:
        """Move λ after a step.

        Args:
            increase: On the step's batch of old examples; may be negative where they were learnt. λ falls then.
        """
        self.recent = increase if self.recent == 0 else _MEMORY * self.recent + (1 - _MEMORY) * increase
        used = self.ratio * increase / (_AIM * self.nats)
        pace = min(max(math.log(used), -_MOST), _MOST) if used > 0 else -_MOST
        self.value = min(max(self.value * math.exp(_GAIN * pace), _SMALLEST), _LARGEST)

    def calibrate(self, increase: float) -> None:
        """Move ρ half of the way to the ratio of a measured increase to that on recent batches.

        Args:
            increase: On examples that training does not see.
        """
        if self.recent > 0 and increase > 0:
            ratio = min(max(increase / self.recent, _LEAST_RATIO), _MOST_RATIO)
            self.ratio = (self.ratio + ratio) / 2

    def state(self) -> dict[str, float]:
        """All numbers."""
        return asdict(self)

    def load(self, state: Mapping[str, Any]) -> None:
        """Take them up again, but the budget.

        Args:
            state: From `state`.
        """
        self.value, self.recent, self.ratio = (float(state[name]) for name in ("value", "recent", "ratio"))
