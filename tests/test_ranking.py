"""τ against pair loops and published numbers, the chance to surpass random against counting every draw."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from forgetless import InputError
from forgetless.evaluation.ranking import (
    estimated_probability_of_surpassing_random,
    kendall_tau,
    probability_of_surpassing_random,
    rank_correlations,
    regret,
)
from forgetless.evaluation.truth import read_truth
from forgetless.spaces.nas201 import Nas201Space

few_levels = st.integers(0, 6)
pairs_with_ties = st.lists(st.tuples(few_levels, few_levels), min_size=3, max_size=14)


def slow_tau(x: list[float], y: list[float]) -> float | None:
    """τ-b from its definition, pair by pair."""
    concordance, different_x, different_y = 0, 0, 0
    for (a, b), (c, d) in itertools.combinations(zip(x, y, strict=True), 2):
        concordance += ((a > c) - (a < c)) * ((b > d) - (b < d))
        different_x += a != c
        different_y += b != d
    return concordance / math.sqrt(different_x * different_y) if different_x and different_y else None


def slow_jackknife(x: list[float], y: list[float], confidence: float) -> tuple[float, float] | None:
    """The interval from pseudo-values, each by leaving one architecture out and counting all pairs again."""
    n, tau = len(x), slow_tau(x, y)
    without = [slow_tau(x[:i] + x[i + 1 :], y[:i] + y[i + 1 :]) for i in range(n)]
    if tau is None or abs(tau) > 1 - 1e-9 or None in without:
        return None
    pseudo = [n * tau - (n - 1) * value for value in without]
    mean = sum(pseudo) / n
    error = math.sqrt(sum((value - mean) ** 2 for value in pseudo) / (n - 1) / n)
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * error / (1 - tau * tau)
    return (math.tanh(math.atanh(tau) - half), math.tanh(math.atanh(tau) + half)) if error > 1e-9 else None


# ---- Kendall's τ -------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(pairs_with_ties)
def test_tau_and_its_interval_against_pair_loops(pairs: list[tuple[float, float]]) -> None:
    x, y = map(list, zip(*pairs, strict=True))
    expected, found = slow_tau(x, y), kendall_tau(x, y, confidence=0.9)
    if expected is None:
        assert found is None
        return
    assert found.mean == pytest.approx(expected, abs=1e-12)
    ends = slow_jackknife(x, y, confidence=0.9)
    if ends is None:
        assert (found.low, found.high) == (None, None)
    else:
        assert (found.low, found.high) == pytest.approx(ends, abs=1e-9)


@settings(deadline=None)
@given(pairs_with_ties)
def test_only_the_order_counts(pairs: list[tuple[float, float]]) -> None:
    x, y = map(list, zip(*pairs, strict=True))
    found = kendall_tau(x, y)
    assert kendall_tau(np.exp(x), [value**3 - 100 for value in y]) == found
    shuffled = random.Random(0).sample(list(zip(x, y, strict=True)), len(x))
    again = kendall_tau(*zip(*shuffled, strict=True))
    assert (again is None) == (found is None)
    assert found is None or again.mean == pytest.approx(found.mean)


@settings(deadline=None)
@given(pairs_with_ties)
def test_turning_one_ranking_round_turns_the_sign(pairs: list[tuple[float, float]]) -> None:
    x, y = map(list, zip(*pairs, strict=True))
    found, turned = kendall_tau(x, y), kendall_tau([-value for value in x], y)
    assume(found is not None)
    assert turned.mean == pytest.approx(-found.mean)
    assert found.low is None or turned.high == pytest.approx(-found.low)


def test_the_interval_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    truth, rho = 0.5, math.sin(math.pi * 0.5 / 2)
    covered = 0
    for _ in range(400):
        x, noise = generator.standard_normal((2, 20))
        interval = kendall_tau(x, rho * x + math.sqrt(1 - rho**2) * noise)
        covered += interval.low <= truth <= interval.high
    assert 0.93 <= covered / 400 <= 0.99


@pytest.mark.parametrize(
    ("x", "y"), [([], []), ([1], [1]), ([1, 2], [1, 2]), ([1, 2, 3], [7, 7, 7]), ([math.nan] * 3, [1, 2, 3])]
)
def test_no_tau_of_fewer_than_three_or_of_a_constant(x: list[float], y: list[float]) -> None:
    assert kendall_tau(x, y) is None


def test_perfect_agreement_has_no_interval() -> None:
    interval = kendall_tau([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    assert interval.mean == pytest.approx(1)
    assert (interval.low, interval.high) == (None, None)


def test_tau_refuses_different_lengths() -> None:
    with pytest.raises(InputError, match=r"one number per architecture, but got 3 x, 2 y"):
        kendall_tau([1, 2, 3], [1, 2])


# ---- over all, unique, top ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "published"),
    [("oneshot_supernet_acc", (0.484, 0.457, -0.195)), ("fewshot_supernet_acc", (0.550, 0.498, 0.006))],
)
def test_published_supernets_on_nas_bench_201(shared_data, column: str, published: tuple[float, float, float]) -> None:
    space = Nas201Space()
    truth = read_truth(shared_data / "nasbench201.csv", space)
    estimates = read_truth(shared_data / "nasbench201_supernet_estimates.csv", space, column)
    positions = truth.positions(estimates.architectures)
    found = rank_correlations(estimates.qualities, truth.qualities[positions], truth.groups[positions])
    sets = (found.overall, found.unique, found.top)
    assert tuple(round(correlation.tau.mean, 3) for correlation in sets) == published
    assert [correlation.num_architectures for correlation in sets] == [15_625, 6_466, 3_122]
    assert all(correlation.tau.low < correlation.tau.mean < correlation.tau.high for correlation in sets)


def test_the_three_sets_by_hand() -> None:
    """Ten architectures; 0 and 9 are one function, and so are 1 and 8; the best 40 % by truth are 6, 7, 8 and 9."""
    truth = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    estimates = [0, 1, 2, 3, 4, 5, 9, 8, 7, 6]
    found = rank_correlations(estimates, truth, groups=[*"abcdefghba"], top=0.4)
    assert found.overall.tau.mean == pytest.approx((45 - 2 * 6) / 45)
    assert found.unique.tau.mean == pytest.approx((28 - 2 * 1) / 28)
    assert found.top.tau.mean == pytest.approx(-1)
    assert [each.num_architectures for each in (found.overall, found.unique, found.top)] == [10, 8, 4]


def test_the_first_of_each_group_counts() -> None:
    """The estimates of the later members would turn τ round."""
    found = rank_correlations([1, 2, 3, 9, 8, 7], [1, 2, 3, 4, 4, 4], groups=[5, 1, 3, 3, 1, 5])
    assert found.unique.tau.mean == pytest.approx(1)


def test_ties_at_the_edge_of_the_top_stay_out_together() -> None:
    truth = [5, 5, 5, 9, 8, 7, 5, 1, 2, 3]
    assert rank_correlations(range(10), truth, top=0.3).top.num_architectures == 3
    assert rank_correlations(range(10), truth, top=0.6).top.num_architectures == 3
    assert rank_correlations(range(10), truth, top=0.7).top.num_architectures == 7
    assert rank_correlations(range(10), truth, top=1).top == rank_correlations(range(10), truth).overall


def test_a_share_that_is_no_binary_fraction_loses_no_architecture() -> None:
    """0.29 · 100 is 28.999999999999996."""
    assert rank_correlations(range(100), range(100), top=0.29).top.num_architectures == 29


@settings(deadline=None)
@given(st.lists(st.tuples(few_levels, few_levels), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_the_top_does_not_depend_on_the_order(pairs: list[tuple[float, float]], generator: random.Random) -> None:
    """At most a fifth, and no architecture outside it is as good as one inside."""
    x, y = map(list, zip(*pairs, strict=True))
    found = rank_correlations(x, y).top
    shuffled = list(zip(x, y, strict=True))
    generator.shuffle(shuffled)
    again = rank_correlations(*zip(*shuffled, strict=True)).top
    assert (again.num_architectures, again.tau is None) == (found.num_architectures, found.tau is None)
    assert found.tau is None or again.tau.mean == pytest.approx(found.tau.mean)
    assert 5 * found.num_architectures <= len(y)
    edge = sorted(y, reverse=True)[found.num_architectures - 1 : found.num_architectures + 1]
    assert found.num_architectures == 0 or edge[0] > edge[1]


def test_without_groups_every_architecture_is_unique() -> None:
    found = rank_correlations([1, 3, 2, 4], [1, 2, 3, 4])
    assert found.unique == found.overall


@pytest.mark.parametrize("diverged", [math.nan, math.inf, -math.inf])
def test_diverged_estimates_are_ties_for_the_worst_and_counted(diverged: float) -> None:
    truth = [1, 2, 3, 4, 5, 6]
    found = rank_correlations([diverged, 3, diverged, 4, 5, 6], truth)
    assert found.overall == rank_correlations([-10, 3, -10, 4, 5, 6], truth).overall
    assert found.num_diverged == 2
    assert rank_correlations(truth, [diverged, 3, diverged, 4, 5, 6]).num_diverged == 2
    assert rank_correlations(truth, truth).num_diverged == 0


def test_no_architectures_have_no_correlation() -> None:
    found = rank_correlations([], [])
    assert (found.overall.tau, found.overall.num_architectures, found.top.num_architectures) == (None, 0, 0)


@pytest.mark.parametrize("top", [0, -0.1, 1.5, math.nan])
def test_top_is_a_share(top: float) -> None:
    with pytest.raises(InputError, match=r"top to be a share in \(0, 1\]"):
        rank_correlations([1, 2], [1, 2], top=top)


def test_rank_correlations_refuse_different_lengths() -> None:
    with pytest.raises(InputError, match=r"got 3 estimates, 3 truth, 2 groups"):
        rank_correlations([1, 2, 3], [1, 2, 3], groups=[0, 1])


# ---- surpassing random -------------------------------------------------------------------------------------------


def slow_surpassing(quality: float, best_of_draws: list[float]) -> float:
    return sum((best < quality) + (best == quality) / 2 for best in best_of_draws) / len(best_of_draws)


@settings(deadline=None)
@given(few_levels, st.lists(few_levels, min_size=1, max_size=5), st.integers(1, 4))
def test_surpassing_random_against_every_sequence_of_draws(quality: int, truth: list[int], num_draws: int) -> None:
    draws = [max(draw) for draw in itertools.product(truth, repeat=num_draws)]
    found = probability_of_surpassing_random(quality, truth, num_draws)
    assert found == pytest.approx(slow_surpassing(quality, draws))


@settings(deadline=None)
@given(few_levels, st.lists(few_levels, min_size=1, max_size=7), st.data())
def test_estimated_surpassing_against_every_subset(quality: int, sample: list[int], data: st.DataObject) -> None:
    num_draws = data.draw(st.integers(1, len(sample)))
    draws = [max(draw) for draw in itertools.combinations(sample, num_draws)]
    found = estimated_probability_of_surpassing_random(quality, sample, num_draws)
    assert found == pytest.approx(slow_surpassing(quality, draws))


@settings(deadline=None)
@given(st.lists(few_levels, min_size=1, max_size=20))
def test_random_surpasses_itself_half_the_time(truth: list[int]) -> None:
    chances = [probability_of_surpassing_random(quality, truth) for quality in truth]
    assert np.mean(chances) == pytest.approx(0.5)


def test_the_estimate_is_unbiased() -> None:
    """Over all samples of 6 with replacement from a space of 4, the estimate for 2 draws is right on average."""
    space = [0.1, 0.4, 0.4, 0.9]
    samples = itertools.product(space, repeat=6)
    mean = np.mean([estimated_probability_of_surpassing_random(0.4, sample, 2) for sample in samples])
    assert mean == pytest.approx(probability_of_surpassing_random(0.4, space, 2))


def test_what_diverged_surpasses_only_what_diverged() -> None:
    assert probability_of_surpassing_random(math.nan, [0.1, 0.2]) == 0
    assert probability_of_surpassing_random(0.1, [math.nan, 0.2]) == 0.5
    assert estimated_probability_of_surpassing_random(math.nan, [math.nan, 0.2]) == 0.25


def test_surpassing_random_refuses_no_values_and_no_draws() -> None:
    with pytest.raises(InputError, match=r"at least one value and one draw, but got 0 values and 1 draws"):
        probability_of_surpassing_random(1.0, [])
    with pytest.raises(InputError, match=r"but got 2 values and 0 draws"):
        estimated_probability_of_surpassing_random(1.0, [1.0, 2.0], 0)
    with pytest.raises(InputError, match=r"at most 2 draws, one per random architecture, but got 3"):
        estimated_probability_of_surpassing_random(1.0, [1.0, 2.0], 3)


# ---- regret ------------------------------------------------------------------------------------------------------


def test_regret_is_the_distance_to_the_optimum() -> None:
    assert regret(-0.25, -0.125) == 0.125
    assert regret(94.37, 94.37) == 0
    assert regret(0.1 + 0.2, 0.3) == 0
    assert regret(math.nan, 1.0) == math.inf


def test_regret_refuses_a_quality_of_another_truth() -> None:
    with pytest.raises(InputError, match=r"at most the optimum 0\.9, but got 0\.95"):
        regret(0.95, 0.9)
