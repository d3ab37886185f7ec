"""Is a difference more than chance: permutation tests, the seeds that they need, and their correction for many.

All of them assume that seeds, or trainings, are independent, and nothing about how the numbers are distributed. What
each number means, and when a test is possible at all: docs/evaluation.md.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forgetless.errors import InputError, expect_one_of
from forgetless.forgetting import ROUNDING, Interval, mean_interval

Alternative = Literal["greater", "less", "two-sided"]
Name = TypeVar("Name", bound=Hashable)
Array = NDArray[np.float64]

NUM_RESAMPLES = 9_999

# Rows of resamples drawn at a time, so that memory does not grow with their number.
_ROWS_AT_A_TIME = 4_096


@dataclass(frozen=True)
class PermutationTest:
    """What a permutation test found.

    Attributes:
        difference: The observed difference of means, or mean difference, in the unit of the quality.
        p: How often chance alone gives a difference at least as large.
        exact: Whether all permutations were counted; else a random sample of them.
        num_diverged: Qualities that were not finite.
    """

    difference: float
    p: float
    exact: bool
    num_diverged: int = 0


def permutation_test(
    found: ArrayLike,
    random: ArrayLike,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    alternative: Alternative = "greater",
) -> PermutationTest:
    """Is the mean quality of the found architectures above that of the random ones? Two independent groups.

    If finding made no difference, every split of the n + m qualities into groups of n and m would be as likely.
    p is the share of splits whose difference of means is at least the observed one: of all (n + m choose n) where
    they are at most `num_resamples`, else of that many random ones and the observed one, (1 + count) / (1 + number),
    which is never 0 (Phipson and Smyth 2010, arXiv:1603.05766). Two-sided: twice the smaller of both one-sided p.

    A diverged training counts as the worst finite quality of the two groups together, which is the same for every
    split, so that the test stays valid; leaving it out would favour the group that diverges.

    Args:
        found: (n,) qualities of the architectures that the search selected; n ≥ 1.
        random: (m,) qualities of as many, or any number of, uniformly drawn ones; m ≥ 1.
        num_resamples: The most splits that are looked at.
        seed: Of the random splits.
        alternative: `greater`: found is better; `less`; `two-sided`.

    Returns:
        The test. No p is below 1/(n + m choose n): see `minimum_p`.

    Raises:
        InputError: If a group is empty, nothing is finite, or an option is unknown.

    >>> permutation_test([3.0, 4.0, 5.0], [0.0, 1.0, 2.0])
    PermutationTest(difference=3.0, p=0.05, exact=True, num_diverged=0)
    """
    groups = [np.asarray(group, dtype=float) for group in (found, random)]
    for name, group in zip(("found", "random"), groups, strict=True):
        if not len(group):
            raise InputError(f"Expected at least one {name} architecture, but got none. Train one from scratch first.")
    _expect_resamples(num_resamples, alternative)
    pooled = np.concatenate(groups)
    finite = np.isfinite(pooled)
    if not finite.any():
        raise InputError(f"Expected a finite quality, but got {len(pooled)} diverged. Train with smaller steps.")
    pooled = np.where(finite, pooled, pooled[finite].min())
    num_found, number = len(groups[0]), len(pooled)
    difference = float(pooled[:num_found].mean() - pooled[num_found:].mean())
    # The difference of means rises with the sum of the first group; centred, it is rounded least.
    centred = pooled - pooled.mean()
    exact = math.comb(number, num_found) <= num_resamples
    if exact:
        sums = centred[np.array(list(itertools.combinations(range(number), num_found)))].sum(1)
    else:
        generator = np.random.default_rng(seed)

        def draw(rows: int) -> Array:
            shuffled = generator.permuted(np.broadcast_to(centred, (rows, number)), axis=1)
            return np.asarray(shuffled[:, :num_found].sum(1))

        sums = _in_parts(draw, num_resamples)
    p = _share_beyond(sums, float(centred[:num_found].sum()), float(np.abs(centred).sum()), alternative, exact=exact)
    return PermutationTest(difference, p, exact, int((~finite).sum()))


def paired_permutation_test(
    differences: ArrayLike,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    alternative: Alternative = "greater",
) -> PermutationTest:
    """Is the mean difference over seeds above 0? The sign-flip test, for two results on each of n seeds.

    If the two were the same, each difference could as well have the other sign. p is the share of sign choices whose
    mean is at least the observed one (Fisher 1935, The Design of Experiments, section 21): of all 2ⁿ where they are
    at most `num_resamples`, else of random ones with the +1 of `permutation_test`.

    Args:
        differences: (n,) quality of the search minus that of random architectures, seed by seed; n ≥ 1.
        num_resamples: The most sign choices that are looked at.
        seed: Of the random sign choices.
        alternative: `greater`: the search is better; `less`; `two-sided`.

    Returns:
        The test. No p is below 2⁻ⁿ: see `minimum_p`.

    Raises:
        InputError: If there are no differences, one is not finite, or an option is unknown.

    >>> paired_permutation_test([0.5, 0.1, 0.3, 0.2, -0.1]).p
    0.09375
    """
    values = np.asarray(differences, dtype=float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise InputError(
            f"Expected one finite difference per seed, but got {values.tolist()}. Leave out seeds of which one side "
            "diverged, and say how many."
        )
    _expect_resamples(num_resamples, alternative)
    n = len(values)
    exact = 2**n <= num_resamples
    if exact:
        sums = (1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)) @ values
    else:
        generator = np.random.default_rng(seed)
        sums = _in_parts(lambda rows: generator.choice([-1.0, 1.0], (rows, n)) @ values, num_resamples)
    p = _share_beyond(sums, float(values.sum()), float(np.abs(values).sum()), alternative, exact=exact)
    return PermutationTest(float(values.mean()), p, exact)


def minimum_p(
    num_seeds: int,
    num_random: int | None = None,
    *,
    alternative: Alternative = "greater",
    num_resamples: int = NUM_RESAMPLES,
) -> float:
    """The smallest p that a test can reach, whatever the results: below it, no difference can be significant.

    One-sided 2⁻ⁿ for n paired seeds, 1/(n + m choose n) for two groups; where these are too many to count all,
    1/(1 + num_resamples). Two-sided twice that.

    Args:
        num_seeds: n, the differences of `paired_permutation_test` or the first group of `permutation_test`.
        num_random: m, the second group; None for the paired test.
        alternative: Of the test.
        num_resamples: Of the test.

    Returns:
        The smallest p, at most 1.

    Raises:
        InputError: If a number is below 1, or `alternative` is unknown.

    >>> minimum_p(5), minimum_p(5, alternative="two-sided"), minimum_p(3, 3)
    (0.03125, 0.0625, 0.05)
    """
    _expect_resamples(num_resamples, alternative)
    for number in (num_seeds, num_random):
        if number is not None and number < 1:
            raise InputError(f"Expected at least 1 seed, but got {number}. Run the comparison on more seeds.")
    number = 2**num_seeds if num_random is None else math.comb(num_seeds + num_random, num_seeds)
    one_sided = 1 / number if number <= num_resamples else 1 / (1 + num_resamples)
    return min(1.0, one_sided * (2 if alternative == "two-sided" else 1))


def expect_enough_seeds(
    num_seeds: int,
    *,
    significance: float = 0.05,
    num_comparisons: int = 1,
    alternative: Alternative = "two-sided",
    num_resamples: int = NUM_RESAMPLES,
) -> None:
    """Refuse a paired comparison that cannot come out significant, before any work is done for it.

    Holm's correction multiplies the smallest of m p-values by m: the n seeds need m · `minimum_p`(n) ≤ significance.

    Args:
        num_seeds: n, the seeds that both sides share.
        significance: Level of the test, in (0, 1).
        num_comparisons: m, the tests that are corrected together; k (k − 1) / 2 for all pairs of k groups.
        alternative: Of the test; `compare_groups` is two-sided.
        num_resamples: Of the test.

    Raises:
        InputError: If there are fewer seeds than the test needs: how many it needs; or if no number of them is enough.

    >>> expect_enough_seeds(5, num_comparisons=3)
    Traceback (most recent call last):
    forgetless.errors.InputError: Expected at least 7 seeds for 3 comparisons at significance 0.05, but got 5, with \
which no p is below 0.1875. Use more seeds.
    """

    def least(number: int) -> float:
        return min(1.0, num_comparisons * minimum_p(number, alternative=alternative, num_resamples=num_resamples))

    if not 0 < significance < 1 or num_comparisons < 1:
        raise InputError(
            f"Expected a significance in (0, 1) and at least 1 comparison, but got {significance} and "
            f"{num_comparisons}. Give 0.05 for one chance in twenty."
        )
    smallest = least(max(num_seeds, 1))
    if num_seeds >= 1 and smallest <= significance:
        return
    # More seeds than resamples have bits are sampled, and reach no smaller p.
    needed = next((n for n in range(1, num_resamples.bit_length() + 1) if least(n) <= significance), None)
    if needed is None:
        raise InputError(
            f"Expected resamples for {num_comparisons} comparisons at significance {significance}, but got "
            f"{num_resamples}, with which no p is below {smallest:.4g}. Use more resamples."
        )
    comparisons = "1 comparison" if num_comparisons == 1 else f"{num_comparisons} comparisons"
    raise InputError(
        f"Expected at least {needed} seeds for {comparisons} at significance {significance}, but got {num_seeds}, "
        f"with which no p is below {smallest:.4g}. Use more seeds."
    )


# ---- many comparisons --------------------------------------------------------------------------------------------


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """p-values corrected for being many, so that the chance of any false discovery is at most the significance.

    With the m p-values in rising order p₍₁₎ ≤ … ≤ p₍ₘ₎ (Holm 1979, Scandinavian Journal of Statistics 6(2)),

        adjusted₍ᵢ₎ = max over j ≤ i of min(1, (m − j + 1) p₍ⱼ₎)

    Args:
        p_values: Name of each test → its p in [0, 1].

    Returns:
        Name → adjusted p, in the order given; significant where it is at most the significance.

    Raises:
        InputError: If a p is not in [0, 1].

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise InputError(f"Expected p-values in [0, 1], but got {p} for {name}. Leave out what was not tested.")
    rising = sorted(p_values, key=lambda name: p_values[name])
    scaled = [(len(rising) - place) * p_values[name] for place, name in enumerate(rising)]
    adjusted = dict(zip(rising, itertools.accumulate(scaled, max), strict=True))
    return {name: min(1.0, adjusted[name]) for name in p_values}


@dataclass(frozen=True)
class Comparison:
    """Two groups on the same seeds.

    Attributes:
        first: Name of a group.
        second: Name of the other.
        difference: first − second, mean over seeds with its Student-t interval, in the unit of the values.
        p: Of the two-sided sign-flip test.
        adjusted_p: After Holm's correction over all comparisons made together.
        significant: Whether `adjusted_p` is at most the significance.
    """

    first: str
    second: str
    difference: Interval
    p: float
    adjusted_p: float
    significant: bool


def compare_groups(
    values: Mapping[str, Sequence[float]],
    *,
    reference: str | None = None,
    significance: float = 0.05,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> tuple[Comparison, ...]:
    """Which groups differ? Every pair, or every group with one reference, on the same seeds, Holm-corrected.

    Each pair gets the two-sided `paired_permutation_test` of its differences, seed by seed. With n seeds and m
    comparisons nothing can be significant unless m · 2 · 2⁻ⁿ ≤ significance: ask `expect_enough_seeds` beforehand. One
    reference makes m = k − 1 comparisons of k groups, all pairs k (k − 1) / 2.

    Args:
        values: Name of each group → one finite number per seed, the same seeds in the same order in all.
        reference: The group to compare all others with; None compares all pairs.
        significance: Level of the corrected tests; the intervals, which are not corrected, cover 1 − significance.
        num_resamples: Of each test.
        seed: Of each test.

    Returns:
        The comparisons: pairs in the order of `values`; or each group as first and the reference as second.

    Raises:
        InputError: If there are fewer than two groups, their numbers of seeds differ or are 0, a value is not finite,
            or the reference is none of them.

    >>> groups = {"none": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "wpl": [0.5, 1.4, 2.3, 3.2, 4.1, 5.0]}
    >>> [(comparison.p, comparison.significant) for comparison in compare_groups(groups)]
    [(0.03125, True)]
    """
    _expect_groups(values)
    if reference is None:
        pairs = list(itertools.combinations(values, 2))
    else:
        expect_one_of("reference", reference, values)
        pairs = [(name, reference) for name in values if name != reference]
    differences = {
        (first, second): (np.asarray(values[first], dtype=float) - np.asarray(values[second], dtype=float)).tolist()
        for first, second in pairs
    }
    return compare_pairs(differences, significance=significance, num_resamples=num_resamples, seed=seed)


def compare_pairs(
    differences: Mapping[tuple[str, str], Sequence[float]],
    *,
    significance: float = 0.05,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> tuple[Comparison, ...]:
    """The same for pairs that were chosen otherwise, each on the seeds that its two groups share.

    Args:
        differences: (first, second) → first − second, one finite number per seed that both have.
        significance: As for `compare_groups`.
        num_resamples: Of each test.
        seed: Of each test.

    Returns:
        The comparisons, in the order given.

    Raises:
        InputError: If a pair has no seed, or a difference is not finite.

    >>> compare_pairs({("wpl", "none"): [-0.5, -0.4, -0.5, -0.3, -0.2, -0.1]})[0].p
    0.03125
    """
    p_values = {
        pair: paired_permutation_test(difference, num_resamples, seed, "two-sided").p
        for pair, difference in differences.items()
    }
    adjusted = holm(p_values)
    return tuple(
        Comparison(
            *pair,
            difference=mean_interval(differences[pair], 1 - significance),
            p=p_values[pair],
            adjusted_p=adjusted[pair],
            significant=adjusted[pair] <= significance,
        )
        for pair in differences
    )


def _expect_groups(values: Mapping[str, Sequence[float]]) -> None:
    if len(values) < 2:
        raise InputError(f"Expected at least two groups to compare, but got {len(values)}. Add one to compare with.")
    sizes = {name: len(numbers) for name, numbers in values.items()}
    if len(set(sizes.values())) > 1 or not all(sizes.values()):
        found = ", ".join(f"{size} for {name}" for name, size in sizes.items())
        raise InputError(f"Expected one value per seed, on the same seeds in all groups, but got {found}.")
    for name, numbers in values.items():
        for place, number in enumerate(numbers):
            if not math.isfinite(number):
                raise InputError(
                    f"Expected finite values, but got {number} for {name} at seed number {place + 1}. Leave this seed "
                    "out of all groups, and say so."
                )


# ---- permutations ------------------------------------------------------------------------------------------------


def _expect_resamples(num_resamples: int, alternative: str) -> None:
    expect_one_of("alternative", alternative, get_args(Alternative))
    if num_resamples < 1:
        raise InputError(f"Expected at least 1 resample, but got {num_resamples}. {NUM_RESAMPLES} is usual.")


def _in_parts(draw: Callable[[int], Array], number: int) -> Array:
    """`draw(rows)` for rows that add up to `number`, one after the other."""
    starts = range(0, number, _ROWS_AT_A_TIME)
    return np.concatenate([draw(min(_ROWS_AT_A_TIME, number - start)) for start in starts])


def _share_beyond(sums: Array, observed: float, scale: float, alternative: Alternative, *, exact: bool) -> float:
    """P of the observed sum among those of the permutations; equal up to rounding is beyond."""
    rounding = ROUNDING * scale
    above, below = int((sums >= observed - rounding).sum()), int((sums <= observed + rounding).sum())
    count = {"greater": above, "less": below, "two-sided": min(above, below)}[alternative]
    one_sided = count / len(sums) if exact else (1 + count) / (1 + len(sums))
    return min(1.0, one_sided * (2 if alternative == "two-sided" else 1))
