"""How much a model forgot: err₂ − err₁, over models and against a run without protection.

err₁ is a model's error right after it was trained, err₂ its error later, both in eval mode on the same held-out data.
Source: Benyahia et al., arXiv:1902.08232, section 4.2, whose figures show the mean, best-5 and maximum over models.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from forgetless.schema import Measured

NUM_BEST = 5

ROUNDING = 1e-9
"""Differences of errors that should cancel leave less than this; nothing that is measured is as small."""

# Seeds drawn at a time by the bootstrap, which would need gigabytes for all resamples of ten thousand seeds.
_MOST_DRAWN = 1_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval; the ends are None where one observation gives none."""

    mean: Measured
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ForgettingSummary:
    """Forgetting over several models, in the unit of the error.

    Attributes:
        mean: Mean of err₂ − err₁ over the models.
        best: Mean over the 5 models with the lowest err₁ (all, if there are fewer).
        maximum: Largest err₂ − err₁.
        num_models: Models that were recorded, revisited and did not diverge.
        num_diverged: Models left out because err₁ or err₂ is not finite or above the meter's limit.
    """

    mean: float
    best: float
    maximum: float
    num_models: int
    num_diverged: int


class ForgettingMeter:
    """Collects err₁ and err₂ of models and summarises err₂ − err₁.

    Args:
        diverged_above: A model whose err₁ or err₂ exceeds this is counted as diverged and left out of the averages
            (in nats per token, a limit of some nats above the uniform prediction's log of the vocabulary size).

    >>> meter = ForgettingMeter()
    >>> meter.record("A", 0.03); meter.record("B", 0.05)
    >>> meter.revisit("A", 0.10); meter.revisit("B", 0.05)
    >>> meter.forgetting("A")
    0.07
    >>> meter.summary().mean, meter.summary().maximum
    (0.035, 0.07)
    """

    def __init__(self, diverged_above: float = math.inf) -> None:
        self.diverged_above = diverged_above
        self._first: dict[Hashable, float] = {}
        self._second: dict[Hashable, float] = {}

    def record(self, model: Hashable, error: float) -> None:
        """Note err₁, right after the model was trained. A model trained again starts anew.

        Args:
            model: Any key: a name, an architecture.
            error: err₁.
        """
        self._first[model] = float(error)
        self._second.pop(model, None)

    def revisit(self, model: Hashable, error: float) -> None:
        """Note err₂, later and on the same data.

        Args:
            model: The key it was recorded under.
            error: err₂. A later one replaces it.

        Raises:
            KeyError: If the model was never recorded.
        """
        if model not in self._first:
            raise KeyError(f"Expected a recorded model, but got {model!r}. Call record first.")
        self._second[model] = float(error)

    def forgetting(self, model: Hashable) -> float:
        """err₂ − err₁ of one model; negative where it improved.

        Args:
            model: A model that was recorded and revisited.

        Returns:
            The difference, in the unit of the error.
        """
        return self._second[model] - self._first[model]

    def reset(self) -> None:
        """Start again, as at an epoch's beginning."""
        self._first.clear()
        self._second.clear()

    def summary(self) -> ForgettingSummary:
        """Mean, best-5 and maximum over the models that were revisited and did not diverge; NaN where none is left."""
        revisited = [model for model in self._first if model in self._second]
        kept = [m for m in revisited if self._converged(self._first[m]) and self._converged(self._second[m])]
        kept.sort(key=lambda model: self._first[model])
        differences = [self.forgetting(model) for model in kept]
        return ForgettingSummary(
            mean=float(np.mean(differences)) if kept else math.nan,
            best=float(np.mean(differences[:NUM_BEST])) if kept else math.nan,
            maximum=max(differences, default=math.nan),
            num_models=len(kept),
            num_diverged=len(revisited) - len(kept),
        )

    def _converged(self, error: float) -> bool:
        return math.isfinite(error) and error <= self.diverged_above

    def state_dict(self) -> dict[str, dict[Hashable, float]]:
        """The errors collected so far."""
        return {"first": dict(self._first), "second": dict(self._second)}

    def load_state_dict(self, state: dict[str, dict[Hashable, float]]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: From `state_dict`.
        """
        self._first, self._second = dict(state["first"]), dict(state["second"])


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean over seeds with its Student-t interval, mean ± t_{n−1} · s/√n.

    Args:
        values: One number per seed.
        confidence: Coverage of the interval.

    Returns:
        The interval; without ends for a single value.

    Raises:
        ValueError: If there are no values.

    >>> mean_interval([1.0, 2.0, 3.0])
    Interval(mean=2.0, low=-0.484..., high=4.484...)
    """
    if not len(values):
        raise ValueError("Expected at least one value, but got none.")
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if len(array) < 2:
        return Interval(mean, None, None)
    from scipy import stats  # takes a second

    half = float(stats.t.ppf((1 + confidence) / 2, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))
    return Interval(mean, mean - half, mean + half)


def interval_of_known(values: Iterable[float | None]) -> Interval | None:
    """`mean_interval` over the seeds that have a finite value; None where none has.

    Args:
        values: One per seed.

    >>> interval_of_known([2.0, None, float("nan")]), interval_of_known([None])
    (Interval(mean=2.0, low=None, high=None), None)
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    return mean_interval(known) if known else None


def reduction(
    protected: Sequence[float],
    unprotected: Sequence[float],
    *,
    confidence: float = 0.95,
    num_resamples: int = 9999,
    seed: int = 0,
) -> Interval | None:
    """Share of the forgetting that a protection prevents, 1 − mean(protected) / mean(unprotected).

    The interval is a percentile bootstrap over seeds, which resamples both arms together, because they share seeds.

    Args:
        protected: Forgetting with protection, one number per seed.
        unprotected: Forgetting without, for the same seeds in the same order.
        confidence: Coverage of the interval.
        num_resamples: Bootstrap resamples.
        seed: Of the bootstrap.

    Returns:
        The reduction (1 is all, negative where the protection made it worse), or None where the run without
        protection does not forget (mean ≤ 0): there is no forgetting to reduce. A resample in which nothing is
        forgotten counts as −∞; an end of the interval that is not finite is None.

    Raises:
        ValueError: If the two have different lengths or are empty.

    >>> reduction([0.01, 0.01], [0.10, 0.10])
    Interval(mean=0.9, low=0.9, high=0.9)
    >>> reduction([0.01], [-0.02]) is None
    True
    """
    if len(protected) != len(unprotected) or not len(protected):
        raise ValueError(
            f"Expected one value per seed in both arms, but got {len(protected)} and {len(unprotected)}. "
            "Compare runs on the same seeds."
        )
    held, free = np.asarray(protected, dtype=float), np.asarray(unprotected, dtype=float)
    if free.mean() <= ROUNDING:
        return None
    estimate = float(1 - held.mean() / free.mean())
    if len(held) < 2:
        return Interval(estimate, None, None)
    generator, parts = np.random.default_rng(seed), []
    at_a_time = max(1, _MOST_DRAWN // len(held))
    for start in range(0, num_resamples, at_a_time):
        rows = generator.integers(len(held), size=(min(at_a_time, num_resamples - start), len(held)))
        free_means = free[rows].mean(1)
        part = np.full(len(rows), -np.inf)
        np.divide(-held[rows].mean(1), free_means, out=part, where=free_means > ROUNDING)
        parts.append(part)
    ratios = np.concatenate(parts)
    ends = np.quantile(1 + ratios, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
    low, high = (float(end) if math.isfinite(end) else None for end in ends)
    return Interval(estimate, low, high)
