"""How the learning rate of a search's weights changes from batch to batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from forgetless.configuration import Part, option


@dataclass(frozen=True, kw_only=True)
class RateConfig(Part):
    """How the learning rate of the supernet's weights changes over the search; see `rate_factor`.

    Attributes:
        schedule: `constant`; `linear` or `cosine` to 0 over the whole search; `restart`, by a cosine to 0 in each
            epoch; or `exponential`, by a factor per epoch. Trainings from scratch at the end are at a constant rate.
        start: First epoch, from 0, in which it falls. Under `exponential` the last one at the whole rate.
        factor: Of an `exponential` one, per epoch.
    """

    title: ClassVar[str] = "Optimizer"

    schedule: Literal["constant", "linear", "cosine", "restart", "exponential"] = option(
        "constant", flag="learning-rate-schedule"
    )
    start: int = option(0, flag="learning-rate-from")
    factor: float = option(0.96, flag="learning-rate-factor")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(0, "start")
        self.expect_positive("factor")
        self.expect_at_most(1, "factor")

    @property
    def in_words(self) -> str:
        """For a line of settings, after the rate; empty for a constant one."""
        if self.schedule == "constant":
            return ""
        falls = f"by {self.factor:g} per epoch" if self.schedule == "exponential" else self.schedule
        return f" falling ({falls}{f' from epoch {self.start + 1}' if self.start else ''})"


def rate_factor(config: RateConfig, step: int, *, per_epoch: int, total: int) -> float:
    """What the configured learning rate is multiplied by for one batch.

    With s the batch's number, n = `per_epoch`, N = `total`, e₀ = `start`, and for s ≥ e₀ n:

        linear         1 − u                   u = (s − e₀ n) / (N − e₀ n)
        cosine         (1 + cos π u) / 2
        restart        (1 + cos π v) / 2       v = (s mod n) / n
        exponential    factor^(⌊s / n⌋ − e₀)

    and 1 before. u and v stay below 1: the last batch's rate is small, but not 0.

    Source: `cosine` and `restart` are Loshchilov and Hutter 2017 (arXiv:1608.03983), the latter with a period of one
    epoch; `exponential` is what the code of Benyahia et al. 2019 does, with factor 0.96 and e₀ = 15.

    Args:
        config: The schedule.
        step: s, from 0 over the whole search; one after the end counts as the last.
        per_epoch: n, training batches of an epoch.
        total: N, training batches of the whole search.

    >>> [rate_factor(RateConfig(schedule="linear"), step, per_epoch=2, total=4) for step in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    step, first = min(step, total - 1), config.start * per_epoch
    if config.schedule == "constant" or step < first:
        return 1.0
    if config.schedule == "exponential":
        return config.factor ** (step // per_epoch - config.start)
    if config.schedule == "restart":
        return _half_cosine(step % per_epoch / per_epoch)
    done = (step - first) / (total - first)
    return 1 - done if config.schedule == "linear" else _half_cosine(done)


def _half_cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2
