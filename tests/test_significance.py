"""Permutation tests against textbook numbers, brute force and scipy; corrections against their definition."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from forgetless import InputError
from forgetless.evaluation.significance import (
    Comparison,
    compare_groups,
    expect_enough_seeds,
    holm,
    minimum_p,
    paired_permutation_test,
    permutation_test,
)
from forgetless.forgetting import mean_interval

ALTERNATIVES = ("greater", "less", "two-sided")
small = st.integers(-4, 4)
group = st.lists(small, min_size=1, max_size=5)

# Heights of crossed minus self-fertilised maize in eighths of an inch, 15 pairs: Darwin's data in Fisher 1935.
DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]


def slow_p(observed: float, permuted: list[float], alternative: str) -> float:
    above = sum(value >= observed - 1e-9 for value in permuted) / len(permuted)
    below = sum(value <= observed + 1e-9 for value in permuted) / len(permuted)
    return {"greater": above, "less": below, "two-sided": min(1, 2 * min(above, below))}[alternative]


# ---- two groups --------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(group, group, st.sampled_from(ALTERNATIVES))
def test_two_groups_against_every_split(found: list[float], drawn: list[float], alternative: str) -> None:
    pooled = [*found, *drawn]
    permuted = []
    for chosen in itertools.product([True, False], repeat=len(pooled)):
        if sum(chosen) == len(found):
            first = [value for value, inside in zip(pooled, chosen, strict=True) if inside]
            second = [value for value, inside in zip(pooled, chosen, strict=True) if not inside]
            permuted.append(sum(first) / len(first) - sum(second) / len(second))
    result = permutation_test(found, drawn, alternative=alternative)
    assert result.exact
    assert result.difference == pytest.approx(np.mean(found) - np.mean(drawn))
    assert result.p == pytest.approx(slow_p(result.difference, permuted, alternative))


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_two_groups_against_scipy(alternative: str) -> None:
    generator = np.random.default_rng(0)
    found, drawn = generator.normal(0.4, 1, 6), generator.normal(0, 1, 7)
    expected = stats.permutation_test(
        (found, drawn), lambda x, y: x.mean() - y.mean(), alternative=alternative, n_resamples=np.inf
    )
    assert permutation_test(found, drawn, alternative=alternative).p == pytest.approx(expected.pvalue)


def test_random_splits_come_near_all_splits() -> None:
    generator = np.random.default_rng(1)
    found, drawn = generator.normal(0.5, 1, 8), generator.normal(0, 1, 8)
    exact = permutation_test(found, drawn, num_resamples=math.comb(16, 8))
    sampled = permutation_test(found, drawn, num_resamples=math.comb(16, 8) - 1)
    assert (exact.exact, sampled.exact) == (True, False)
    assert sampled.p == pytest.approx(exact.p, abs=4 * math.sqrt(exact.p / 12_869))
    assert sampled == permutation_test(found, drawn, num_resamples=math.comb(16, 8) - 1)
    assert sampled.p != permutation_test(found, drawn, num_resamples=math.comb(16, 8) - 1, seed=1).p


def test_a_sampled_p_is_never_zero() -> None:
    assert permutation_test(range(100, 120), range(20), num_resamples=99).p == 0.01
    assert paired_permutation_test([1.0] * 40, num_resamples=99).p == 0.01


@settings(deadline=None)
@given(group, group)
def test_only_differences_count(found: list[float], drawn: list[float]) -> None:
    result = permutation_test(found, drawn)
    moved = permutation_test([value / 7 + 1e3 for value in found], [value / 7 + 1e3 for value in drawn])
    assert moved.p == result.p
    assert permutation_test(drawn, found, alternative="less").p == result.p


def test_without_a_difference_p_is_at_most_the_significance_as_often_as_it_may() -> None:
    """Each split of eight numbers in turn is the observed one: at most 5 % of them have p ≤ 0.05."""
    numbers = [0.1, 0.2, 0.2, 0.4, 0.5, 0.7, 0.7, 0.9]
    p_values = []
    for chosen in itertools.combinations(range(8), 4):
        rest = [numbers[place] for place in range(8) if place not in chosen]
        p_values.append(permutation_test([numbers[place] for place in chosen], rest).p)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05


def test_equal_qualities_and_single_ones() -> None:
    assert permutation_test([0.5, 0.5], [0.5, 0.5, 0.5]).p == 1
    assert permutation_test([0.5], [0.5], alternative="two-sided").p == 1
    assert permutation_test([9], range(9)).p == 0.1


def test_diverged_trainings_count_as_the_worst_of_both_groups() -> None:
    result = permutation_test([math.nan, 0.8, 0.9], [0.5, math.inf, 0.3])
    assert result == replace(permutation_test([0.3, 0.8, 0.9], [0.5, 0.3, 0.3]), num_diverged=2)


def test_two_groups_refuse_what_cannot_be_tested() -> None:
    with pytest.raises(InputError, match=r"at least one random architecture, but got none"):
        permutation_test([1.0], [])
    with pytest.raises(InputError, match=r"a finite quality, but got 2 diverged"):
        permutation_test([math.nan], [math.inf])
    with pytest.raises(InputError, match=r"alternative to be one of greater, less, two-sided, but got 'better'"):
        permutation_test([1.0], [2.0], alternative="better")
    with pytest.raises(InputError, match=r"at least 1 resample, but got 0"):
        permutation_test([1.0], [2.0], num_resamples=0)


# ---- paired ------------------------------------------------------------------------------------------------------


def test_darwins_maize() -> None:
    """863 of the 32,768 sums reach 314 (Fisher 1935, section 21)."""
    result = paired_permutation_test(DARWIN, num_resamples=2**15)
    assert (result.exact, result.difference) == (True, 314 / 15)
    assert result.p * 2**15 == pytest.approx(863)
    assert paired_permutation_test(DARWIN, alternative="two-sided").p == pytest.approx(1726 / 2**15, abs=0.01)


@settings(deadline=None)
@given(st.lists(small, min_size=1, max_size=8), st.sampled_from(ALTERNATIVES))
def test_pairs_against_every_choice_of_signs(differences: list[float], alternative: str) -> None:
    permuted = [
        sum(sign * value for sign, value in zip(signs, differences, strict=True))
        for signs in itertools.product([1, -1], repeat=len(differences))
    ]
    result = paired_permutation_test(differences, alternative=alternative)
    assert result.p == pytest.approx(slow_p(sum(differences), permuted, alternative))
    assert result.difference == pytest.approx(np.mean(differences))


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_pairs_against_scipy(alternative: str) -> None:
    generator = np.random.default_rng(0)
    found, drawn = generator.normal(0.4, 1, 9), generator.normal(0, 1, 9)
    expected = stats.permutation_test(
        (found, drawn),
        lambda x, y: np.mean(x - y),
        permutation_type="samples",
        alternative=alternative,
        n_resamples=np.inf,
    )
    assert paired_permutation_test(found - drawn, alternative=alternative).p == pytest.approx(expected.pvalue)


def test_no_difference_has_p_one() -> None:
    assert paired_permutation_test([0.0, 0.0, 0.0]).p == 1
    assert paired_permutation_test([0.0], alternative="two-sided").p == 1


@pytest.mark.parametrize("differences", [[], [0.1, math.nan], [math.inf], [[0.1, 0.2]]])
def test_pairs_refuse_what_is_not_finite(differences: list[float]) -> None:
    with pytest.raises(InputError, match=r"one finite difference per seed"):
        paired_permutation_test(differences)


# ---- how many seeds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("num_seeds", [1, 2, 3, 6, 13, 14, 20])
def test_the_smallest_p_is_reached_and_not_passed(num_seeds: int, alternative: str) -> None:
    sign = -1 if alternative == "less" else 1
    reached = paired_permutation_test([sign * 2.0**power for power in range(num_seeds)], alternative=alternative).p
    smallest = minimum_p(num_seeds, alternative=alternative)
    # Among random signs the observed ones come up by chance now and then.
    assert reached == smallest if num_seeds < 14 else smallest <= reached <= 5 * smallest


@pytest.mark.parametrize(("num_found", "num_random"), [(1, 1), (1, 19), (3, 3), (5, 5), (4, 7)])
@pytest.mark.parametrize("alternative", ["greater", "two-sided"])
def test_the_smallest_p_of_two_groups(num_found: int, num_random: int, alternative: str) -> None:
    found = 100 + np.arange(num_found)
    p = permutation_test(found, np.arange(num_random), alternative=alternative).p
    assert minimum_p(num_found, num_random, alternative=alternative) == pytest.approx(p)


def test_the_smallest_p_needs_a_seed() -> None:
    with pytest.raises(InputError, match=r"at least 1 seed, but got 0"):
        minimum_p(0)


@pytest.mark.parametrize(("num_groups", "needed"), [(2, 6), (3, 7), (5, 9), (9, 11)])
def test_with_the_seeds_that_are_asked_for_a_clear_difference_is_significant(num_groups: int, needed: int) -> None:
    num_comparisons = num_groups * (num_groups - 1) // 2
    expect_enough_seeds(needed, num_comparisons=num_comparisons)
    with pytest.raises(InputError, match=rf"at least {needed} seeds for {num_comparisons} comparisons?.*{needed - 1}"):
        expect_enough_seeds(needed - 1, num_comparisons=num_comparisons)

    def compared(num_seeds: int) -> list[bool]:
        values = {f"group {k}": [10.0 * k + seed * (k + 1) for seed in range(num_seeds)] for k in range(num_groups)}
        return [comparison.significant for comparison in compare_groups(values)]

    assert all(compared(needed))
    assert not any(compared(needed - 1))


def test_no_seeds_are_too_few() -> None:
    with pytest.raises(InputError, match=r"at least 5 seeds for 1 comparison at significance 0\.05, but got 0"):
        expect_enough_seeds(0, alternative="greater")


def test_too_few_resamples_are_not_mended_by_seeds() -> None:
    with pytest.raises(InputError, match=r"resamples for 10 comparisons at significance 0\.05, but got 99"):
        expect_enough_seeds(1000, num_comparisons=10, num_resamples=99)


@pytest.mark.parametrize(("significance", "num_comparisons"), [(0.0, 1), (1.0, 1), (math.nan, 1), (0.05, 0)])
def test_seeds_for_a_level_that_is_none(significance: float, num_comparisons: int) -> None:
    with pytest.raises(InputError, match=r"a significance in \(0, 1\) and at least 1 comparison"):
        expect_enough_seeds(5, significance=significance, num_comparisons=num_comparisons)


# ---- Holm --------------------------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    """4 · 0.005 = 0.02; 3 · 0.01 = 0.03; 2 · 0.03 = 0.06; 1 · 0.04 is below it, and may not be."""
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(adjusted) == ["a", "b", "c", "d"]


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=8), st.integers(1, 60))
def test_holm_rejects_as_the_procedure_does(hundredths: list[int], level: int) -> None:
    """Step down from the smallest p and stop at the first above level / (number of those left)."""
    rejected, left = set(), dict(enumerate(hundredths))
    while left:
        smallest = min(left, key=left.get)
        if left[smallest] * len(left) > level:
            break
        rejected.add(smallest)
        del left[smallest]
    adjusted = holm({name: number / 100 for name, number in enumerate(hundredths)})
    assert {name for name, p in adjusted.items() if p <= level / 100 + 1e-12} == rejected
    assert all(number / 100 <= adjusted[name] <= 1 for name, number in enumerate(hundredths))


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_p(p: float) -> None:
    with pytest.raises(InputError, match=r"p-values in \[0, 1\], but got .* for b"):
        holm({"a": 0.5, "b": p})


# ---- groups on the same seeds ------------------------------------------------------------------------------------

GROUPS = {
    "none": [1.0, 1.2, 0.9, 1.1, 1.3, 0.8, 1.05, 0.95],
    "wpl": [0.4, 0.6, 0.3, 0.5, 0.7, 0.3, 0.45, 0.3],
    "l2": [0.5, 0.5, 0.4, 0.5, 0.6, 0.4, 0.35, 0.4],
}


def test_all_pairs_are_compared_seed_by_seed_and_corrected() -> None:
    found = {(each.first, each.second): each for each in compare_groups(GROUPS)}
    assert list(found) == [("none", "wpl"), ("none", "l2"), ("wpl", "l2")]
    differences = {pair: np.subtract(GROUPS[pair[0]], GROUPS[pair[1]]) for pair in found}
    p_values = {pair: paired_permutation_test(each, alternative="two-sided").p for pair, each in differences.items()}
    adjusted = holm(p_values)
    for pair, each in found.items():
        assert each.p == pytest.approx(p_values[pair])
        assert each.adjusted_p == pytest.approx(adjusted[pair])
        assert each.difference == mean_interval(differences[pair].tolist())
    assert [each.significant for each in found.values()] == [True, True, False]


def test_one_reference_makes_fewer_comparisons() -> None:
    found = compare_groups(GROUPS, reference="none")
    assert [(each.first, each.second) for each in found] == [("wpl", "none"), ("l2", "none")]
    assert all(each.difference.mean < 0 and each.adjusted_p == 2 * 2 / 2**8 for each in found)


def test_a_stricter_level_makes_wider_intervals() -> None:
    loose, strict = compare_groups(GROUPS, significance=0.2)[0], compare_groups(GROUPS, significance=0.001)[0]
    assert isinstance(loose, Comparison)
    assert strict.difference.low < loose.difference.low
    assert (loose.significant, strict.significant) == (True, False)


def test_one_seed_shows_nothing() -> None:
    (found,) = compare_groups({"a": [1.0], "b": [0.0]})
    assert (found.p, found.significant, found.difference.low) == (1.0, False, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": [1.0]}, r"at least two groups to compare, but got 1"),
        ({"a": [1.0, 2.0], "b": [1.0]}, r"on the same seeds in all groups, but got 2 for a, 1 for b"),
        ({"a": [], "b": []}, r"but got 0 for a, 0 for b"),
        ({"a": [1.0, 2.0], "b": [1.0, math.nan]}, r"finite values, but got nan for b at seed number 2"),
    ],
)
def test_groups_that_cannot_be_compared(values: dict[str, list[float]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare_groups(values)


def test_the_reference_is_one_of_the_groups() -> None:
    with pytest.raises(InputError, match=r"reference to be one of none, wpl, l2, but got 'non'\. Did you mean 'none'"):
        compare_groups(GROUPS, reference="non")
