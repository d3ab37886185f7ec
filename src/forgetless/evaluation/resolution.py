"""What a truth can resolve: several trainings of each architecture, and how well one half of them ranks the other.

A truth file may have a column per training seed, `test_error_seed0`, `test_error_seed1`, …; docs/truth-files.md has the
format. Of these this module takes the columns that are asked for, mean, median, standard deviation and the share that
diverged, and the ceiling of any ranking.
"""

import itertools
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from forgetless.errors import InputError
from forgetless.evaluation.ranking import rank_correlations
from forgetless.evaluation.records import Ceiling

Statistic = Literal["mean", "median", "std", "diverged"]
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)

MOST_SPLITS = 126  # those of ten seeds; of more seeds as many are drawn

_SEED_COLUMN = re.compile(r"(.+)_seed(\d+)")


def seed_columns(header: Iterable[str]) -> dict[str, list[str]]:
    """Quality → its columns, one per training seed, in the order of the seeds.

    Args:
        header: Names of all columns.

    >>> seed_columns(["architecture", "test_error_seed10", "test_error_seed9", "test_error"])
    {'test_error': ['test_error_seed9', 'test_error_seed10']}
    """
    found: dict[str, dict[int, str]] = {}
    for name in header:
        if match := _SEED_COLUMN.fullmatch(name):
            found.setdefault(match[1], {})[int(match[2])] = name
    return {quality: [of_seed[seed] for seed in sorted(of_seed)] for quality, of_seed in found.items()}


@dataclass(frozen=True, eq=False)
class Trainings:
    """What several trainings of each architecture came to, and what of them is the truth.

    Args:
        values: (n, S) quality of n architectures with S seeds; one that is not finite has diverged.
        statistic: Over seeds: `mean`, `median`, `std` (S − 1) or `diverged`, the share of seeds that diverged.
        guessing: What a training that diverged counts as in the first three: the quality of guessing.

    Raises:
        InputError: If there is no seed, fewer than two for `std`, or a training diverged and `guessing` is not known.

    >>> trainings = Trainings(np.array([[0.5, 0.3, 0.4], [0.2, math.inf, 0.3]]), "median", 0.9)
    >>> trainings.over().tolist()
    [0.4, 0.3]
    """

    values: NDArray[np.float64]
    statistic: Statistic
    guessing: float = math.nan

    def __post_init__(self) -> None:
        fewest = 2 if self.statistic == "std" else 1
        if self.values.ndim != 2 or self.num_seeds < fewest:
            raise InputError(
                f"Expected trainings with at least {fewest} seed{'s' * (fewest > 1)} for the {self.statistic}, but got "
                f"the shape {self.values.shape}. Give one column per seed."
            )
        num_diverged = int((~np.isfinite(self.values)).sum())
        if self.statistic != "diverged" and num_diverged and not math.isfinite(self.guessing):
            raise InputError(
                f"Expected the quality of guessing, which trainings that diverged count as, but got none for "
                f"{num_diverged}. Write it on a line `# guessing: 6.9` of the file, or ask for the share that diverged."
            )

    @cached_property
    def _counted(self) -> NDArray[np.float64]:
        """(n, S) What the statistic is over, all finite."""
        diverged = ~np.isfinite(self.values)
        if self.statistic == "diverged":
            return diverged.astype(float)
        return np.where(diverged, self.guessing, self.values)

    @property
    def num_seeds(self) -> int:
        """S."""
        return int(self.values.shape[1])

    def over(self, seeds: Sequence[int] | None = None) -> NDArray[np.float64]:
        """The statistic over some seeds.

        Args:
            seeds: Their columns, from 0; all if None.

        Returns:
            (n,), a number for each architecture.
        """
        chosen = self._counted if seeds is None else self._counted[:, list(seeds)]
        if self.statistic == "median":
            return np.asarray(np.median(chosen, axis=1))
        if self.statistic == "std":
            return np.asarray(chosen.std(axis=1, ddof=1))
        return np.asarray(chosen.mean(axis=1))


def ceiling_of(
    trainings: Trainings, groups: NDArray[np.intp] | None = None, *, lower_is_better: bool = True, top: float = 0.2
) -> Ceiling | None:
    """How well one half of the trainings ranks architectures as the other does: what results are read beside.

    With A and B two disjoint groups of h = ⌊S/2⌋ seeds, and q_A, q_B the statistic over each, the mean of Kendall's
    τ-b(q_A, q_B) over all such splits, of which there are C(S, h) C(S − h, h) / 2. For the best 20 % each group is the
    truth in turn, and what is best is by that group, as in `rank_correlations`. To take the best by all S seeds would
    be wrong: in the sum of two halves that is among the best, one half's luck makes up for the other's, and τ between
    them falls below 0 where a new training ranks better than chance.

    It is a lower bound for the ceiling. The truth is over S seeds and not h, and a ranking that knows the expected
    quality has no noise of its own: it reaches more. By how much depends on how qualities are distributed, as τ, unlike
    a correlation, has no Spearman–Brown formula. Where qualities and the noise of a training are normal,

        ρ = sin(π τ / 2),    ρ' = (S/h) ρ / (1 + (S/h − 1) ρ),    τ' = (2/π) arcsin √ρ'

    is what such a ranking reaches over all architectures: with three seeds, τ of ⅓ between halves means τ' of ⅔.

    Args:
        trainings: Of each architecture.
        groups: (n,) equal for architectures that are the same function; None makes every one its own.
        lower_is_better: Whether they are errors.
        top: Share of the architectures that counts as the best.

    Returns:
        The τ; None where a half has too few seeds for the statistic, or nothing can be ranked.
    """
    half = trainings.num_seeds // 2
    if half < (2 if trainings.statistic == "std" else 1):
        return None
    sign = -1.0 if lower_is_better else 1.0
    found: dict[str, list[float]] = {"overall": [], "unique": [], "top": []}
    num_splits = 0
    for split in _splits(trainings.num_seeds, half):
        num_splits += 1
        first, second = (sign * trainings.over(seeds) for seeds in split)
        for estimates, truth in ((first, second), (second, first)):
            ranks = rank_correlations(estimates, truth, groups, top=top)
            for name, taus in found.items():
                tau = getattr(ranks, name).tau
                taus += [] if tau is None else [tau.mean]
    if not found["overall"]:
        return None
    overall, unique, best = (statistics.fmean(taus) if taus else None for taus in found.values())
    return Ceiling(
        num_seeds=trainings.num_seeds, half=half, num_splits=num_splits, tau=overall, tau_unique=unique, tau_top=best
    )


def _splits(number: int, half: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Pairs of disjoint groups of `half` of the seeds: all of them, or as many as MOST_SPLITS that are drawn."""
    if math.comb(number, half) * math.comb(number - half, half) // 2 > MOST_SPLITS:
        generator = np.random.default_rng(0)
        for _ in range(MOST_SPLITS):
            order = generator.permutation(number).tolist()
            yield tuple(order[:half]), tuple(order[half : 2 * half])
        return
    for first in itertools.combinations(range(number), half):
        rest = [seed for seed in range(number) if seed not in first]
        for second in itertools.combinations(rest, half):
            if first < second:
                yield first, second
