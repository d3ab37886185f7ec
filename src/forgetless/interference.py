"""Which architecture overwrites which: all pairs of a sample, from one frozen state of the shared weights.

The forgetting of a search mixes two causes: others are trained, and time passes. Here every architecture is trained
from the same weights on the same batches, so that the difference between two trainings is the architecture alone.

Source: this package's own. The forgetting that it takes apart is that of Benyahia et al. 2019, arXiv:1902.08232,
section 4.2.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from forgetless.errors import InputError
from forgetless.forgetting import Interval
from forgetless.records import Record
from forgetless.schema import Measured

Model = TypeVar("Model")
Array = NDArray[np.float64]

_CONFIDENCE = 0.95
_NUM_RESAMPLES = 9_999
_FEWEST_FOR_INTERVAL = 3


@dataclass(frozen=True, eq=False)
class Interference:
    """How the error of each of n architectures changes when one of them is trained.

    Attributes:
        architectures: Their names.
        error: (n,) err_i in the frozen state, in the unit of the error; NaN where it diverged.
        change: (n, n) in the same unit. Row j, column i: err_i after j was trained from the frozen state, minus
            err_i in the frozen state; NaN where one of the two diverged.
    """

    architectures: tuple[str, ...]
    error: Array
    change: Array

    @property
    def matrix(self) -> Array:
        """(n, n) change_ji − change_ii: how much worse i is off because j was trained and not i itself.

        The diagonal is 0. NaN where one of the two changes is.
        """
        matrix = self.change - self.change.diagonal()
        np.fill_diagonal(matrix, 0.0)
        return matrix

    @property
    def pairs(self) -> NDArray[np.bool_]:
        """(n, n) Whether j ≠ i and nothing diverged: the pairs that are averaged over."""
        pairs: NDArray[np.bool_] = np.isfinite(self.matrix) & ~np.eye(len(self.architectures), dtype=bool)
        return pairs

    @property
    def num_diverged(self) -> int:
        """Pairs j ≠ i that are left out because an error that they need diverged."""
        n = len(self.architectures)
        return n * (n - 1) - int(self.pairs.sum())

    @property
    def largest(self) -> float:
        """The largest entry of the matrix over all pairs; NaN if there is none."""
        return float(np.max(self.matrix[self.pairs], initial=-math.inf)) if self.pairs.any() else math.nan

    @property
    def share_worse(self) -> float:
        """The share of the pairs with change_ji > 0, where training j made i worse than it was; NaN without pairs."""
        return float((self.change[self.pairs] > 0).mean()) if self.pairs.any() else math.nan

    @cached_property
    def multi_model_part(self) -> Interval:
        """The mean of matrix_ji over all pairs: what it costs a model that another was trained and not itself.

        Its 95 % interval is a percentile bootstrap over architectures: n of them are drawn with replacement, rows and
        columns together, 9,999 times from a fixed seed; pairs of two draws of one architecture are left out, and so
        is a draw without any pair. (The bootstrap of Snijders and Borgatti 1999, Connections 22(2), which fills those
        pairs in from all others.) The ends are None for fewer than 3 architectures; the mean is NaN if all diverged.
        """
        n, pairs = len(self.architectures), self.pairs
        if not pairs.any():
            return Interval(math.nan, None, None)
        mean = float(self.matrix[pairs].mean())
        if n < _FEWEST_FOR_INTERVAL:
            return Interval(mean, None, None)
        # How often each architecture is drawn, (resamples, n); a pair counts as often as both together.
        drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_NUM_RESAMPLES).astype(float)
        weights, totals = (
            ((drawn @ values) * drawn).sum(1) for values in (pairs.astype(float), np.where(pairs, self.matrix, 0.0))
        )
        means = totals[weights > 0] / weights[weights > 0]
        low, high = np.quantile(means, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
        return Interval(mean, float(low), float(high))


@dataclass(frozen=True, slots=True, kw_only=True)
class InterferenceRecord(Record):
    """What `forgetless interference` measured of one search: n architectures, each trained for k batches.

    Attributes:
        seed: (integer) Of the search.
        protection: (text) Of the search.
        epochs: (count) Epochs that were finished in the state.
        num_batches: (count) k, training batches of each architecture: the first of the epoch that would have followed.
        architectures: (n texts) Drawn uniformly, distinct where the space has enough; the same for all protections of
            a seed.
        error: (n errors) err_i in the state, on `evaluation_batches` batches of the second half of `validation`. null
            where it diverged.
        change: (n × n errors) Row j, column i: err_i after j was trained, minus `error`_i. null where one of the two
            diverged.
        matrix: (n × n errors) `change`_ji − `change`_ii, how much worse off i is because j was trained and not i
            itself; 0 on the diagonal, null where one of the two is.
        multi_model_part: (error) `mean`: of `matrix`_ji over all j ≠ i that are not null. `low`, `high`: the 2.5 % and
            97.5 % points of 9,999 bootstrap resamples of the architectures, rows and columns together (generator
            seeded with 0), in which two draws of one architecture are no pair; null for fewer than 3 architectures.
        largest: (error) The greatest of these entries.
        share_worse: (share) Of these pairs, those with `change`_ji > 0, in which training j made i worse than it was.
        num_diverged: (count) Pairs j ≠ i that are null in `matrix`; with the pairs averaged over they add up to
            n (n − 1).
    """

    seed: int
    protection: str
    epochs: int
    num_batches: int
    architectures: list[str]
    error: list[Measured]
    change: list[list[Measured]]
    matrix: list[list[Measured]]
    multi_model_part: Interval
    largest: Measured
    share_worse: Measured
    num_diverged: int

    @classmethod
    def of(cls, found: Interference, *, seed: int, protection: str, epochs: int, num_batches: int) -> Self:
        """The record of what was found.

        Args:
            found: In the state.
            seed: Of the search.
            protection: Of the search.
            epochs: That were finished in the state.
            num_batches: That each architecture was trained for.
        """
        return cls(
            seed=seed,
            protection=protection,
            epochs=epochs,
            num_batches=num_batches,
            architectures=list(found.architectures),
            error=found.error.tolist(),
            change=found.change.tolist(),
            matrix=found.matrix.tolist(),
            multi_model_part=found.multi_model_part,
            largest=found.largest,
            share_worse=found.share_worse,
            num_diverged=found.num_diverged,
        )

    @property
    def found(self) -> Interference:
        """What it is the record of.

        Raises:
            ValueError: If the shapes do not fit.
        """
        n, error, change = len(self.architectures), np.array(self.error), np.array(self.change)
        if error.shape != (n,) or change.shape != (n, n):
            raise ValueError(f"Expected {n} errors and {n} × {n} changes, but got {error.shape} and {change.shape}.")
        return Interference(tuple(self.architectures), error, change)


def measure_interference(
    architectures: Sequence[Model],
    train: Callable[[Model], object],
    error: Callable[[Model], float],
    undone: Callable[[], AbstractContextManager[None]],
    *,
    diverged_above: float = math.inf,
    on_trained: Callable[[int], None] | None = None,
) -> Interference:
    """Train each architecture from the same state and evaluate all of them after each: n trainings, n² + n errors.

    Args:
        architectures: n of them, at least 2; printed by `str`. They may be repeated.
        train: Trains one, always on the same batches.
        error: The error of one at the present weights, always on the same held-out data.
        undone: A context at whose end everything is as it was at its beginning.
        diverged_above: An error that is not finite or above this has diverged.
        on_trained: Called with the number of architectures trained so far.

    Returns:
        The change of each error by each training.

    Raises:
        InputError: If there are fewer than 2 architectures.
    """
    if len(architectures) < 2:
        raise InputError(f"Expected at least 2 architectures to measure interference, but got {len(architectures)}.")
    with undone():
        errors = [[error(architecture) for architecture in architectures]]
    for number, trained in enumerate(architectures, start=1):
        with undone():
            train(trained)
            errors.append([error(architecture) for architecture in architectures])
        if on_trained is not None:
            on_trained(number)
    found = np.array(errors, dtype=float)
    found[~(np.isfinite(found) & (found <= diverged_above))] = np.nan
    return Interference(tuple(map(str, architectures)), found[0], found[1:] - found[0])
