"""Back along the straight path from the weights after training to those before, until the increase is allowed."""

import math
from collections.abc import Callable
from typing import NamedTuple

_ONE_SIDED = 1.645
"""Standard errors from the mean to the upper end of an interval that holds the truth in 95 % of cases."""

# The search ends where the upper end lies between this share of the budget and the budget.
_CLOSE = 0.97
_MOST_TRIES = 16
# A guess stays so far, as a share of the bracket, from its ends.
_INSIDE = 0.02


class Increase(NamedTuple):
    """By how much the old loss has grown, as measured on examples that were held out.

    Attributes:
        mean: In nats per target.
        error: Its standard error over the examples; 0 where there is one example.
    """

    mean: float
    error: float

    @property
    def upper(self) -> float:
        """The end of a one-sided 95 % interval: mean + 1.645 standard errors. NaN if anything is not finite."""
        upper = self.mean + _ONE_SIDED * self.error
        return upper if math.isfinite(upper) else math.nan


def share_within(measure: Callable[[float], Increase], nats: float) -> tuple[float, Increase]:
    """The share t of the way θ̂ + t (θ − θ̂) that can be kept, such that the increase is at most so many nats.

    The increase starts from 0 like t², therefore the search takes secants of its square root, within a bracket that
    every third step halves. Where the increase is not monotone the end is one at which it passes the budget.

    Args:
        measure: Share → the increase there.
        nats: Above 0.

    Returns:
        The share, 1 if all of the way is within, and the increase there. The upper end of the increase is at most
        `nats`, or the share is 0.

    >>> share, increase = share_within(lambda t: Increase(0.2 * t**2, 0.0), nats=0.05)
    >>> round(share, 2), 0.0485 <= increase.mean <= 0.05
    (0.5, True)
    """
    at_end = measure(1.0)
    if at_end.upper <= nats:
        return 1.0, at_end
    kept: Increase | None = None
    low, high, below, above = 0.0, 1.0, 0.0, at_end.upper
    goal = math.sqrt((1 + _CLOSE) / 2 * nats)
    for attempt in range(_MOST_TRIES):
        guess = (low + high) / 2
        if attempt % 3 != 2 and math.isfinite(above):
            left, right = math.sqrt(max(below, 0.0)), math.sqrt(above)
            guess = low + (high - low) * min(max((goal - left) / (right - left), _INSIDE), 1 - _INSIDE)
        found = measure(guess)
        if found.upper <= nats:
            low, below, kept = guess, found.upper, found
            if below >= _CLOSE * nats:
                break
        else:  # also where it is not a number
            high, above = guess, found.upper
    return (low, kept) if kept is not None else (0.0, measure(0.0))
