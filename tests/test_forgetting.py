"""The meter against numbers computed by hand, the intervals against scipy, brute force and simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from forgetless import ForgettingMeter, Interval, forgetting, reduction
from forgetless.forgetting import mean_interval


def metered(pairs: list[tuple[float, float]], **options: float) -> ForgettingMeter:
    meter = ForgettingMeter(**options)
    for model, (first, _) in enumerate(pairs):
        meter.record(model, first)
    for model, (_, second) in enumerate(pairs):
        meter.revisit(model, second)
    return meter


# ---- the meter ---------------------------------------------------------------------------------------------------


def test_summary_of_more_than_five_models_by_hand() -> None:
    """Differences 6, 1, 2, −3, 4, 0, 11; the five with the lowest err₁ are those that start at 1, 2, 3, 4, 5."""
    summary = metered([(7, 13), (1, 2), (5, 7), (4, 1), (2, 6), (3, 3), (6, 17)]).summary()
    assert summary.mean == 21 / 7
    assert summary.best == (1 + 4 + 0 - 3 + 2) / 5
    assert summary.maximum == 11
    assert (summary.num_models, summary.num_diverged) == (7, 0)


def test_summary_of_fewer_than_five_models_by_hand() -> None:
    summary = metered([(1, 2), (2, 5)]).summary()
    assert (summary.mean, summary.best, summary.maximum) == (2, 2, 3)
    assert summary.num_models == 2


def test_the_order_of_recording_does_not_matter() -> None:
    pairs = [(7, 13), (1, 2), (5, 7), (4, 1), (2, 6), (3, 3), (6, 17)]
    assert metered(pairs[::-1]).summary() == metered(pairs).summary()


def test_improvement_is_negative_forgetting() -> None:
    summary = metered([(0.5, 0.25), (0.5, 0.375)]).summary()
    assert (summary.mean, summary.best, summary.maximum) == (-0.1875, -0.1875, -0.125)


def test_only_revisited_models_count() -> None:
    meter = ForgettingMeter()
    meter.record("A", 1.0)
    meter.record("B", 2.0)
    meter.revisit("B", 2.5)
    assert meter.summary().num_models == 1
    assert meter.summary().mean == 0.5
    with pytest.raises(KeyError, match="A"):
        meter.forgetting("A")


def test_diverged_models_are_counted_by_themselves() -> None:
    pairs = [(1.0, 2.0), (1.0, math.nan), (math.inf, 1.0), (1.0, 10.5), (10.5, 1.0), (10.0, 10.0)]
    summary = metered(pairs, diverged_above=10.0).summary()
    assert (summary.num_models, summary.num_diverged) == (2, 4)
    assert (summary.mean, summary.best, summary.maximum) == (0.5, 0.5, 1.0)
    assert metered(pairs).summary().num_diverged == 2


def test_a_diverged_model_is_not_among_the_best() -> None:
    pairs = [(0.0, 100.0), *((float(n), n + 1.0) for n in range(1, 6)), (9.0, 20.0)]
    assert metered(pairs, diverged_above=50.0).summary().best == 1.0


@pytest.mark.parametrize("pairs", [[], [(math.nan, 1.0)]])
def test_nothing_to_summarise_is_nan(pairs: list[tuple[float, float]]) -> None:
    summary = metered(pairs).summary()
    assert all(math.isnan(value) for value in (summary.mean, summary.best, summary.maximum))
    assert (summary.num_models, summary.num_diverged) == (0, len(pairs))


def test_a_later_visit_replaces_and_a_new_record_starts_anew() -> None:
    meter = ForgettingMeter()
    meter.record("A", 1.0)
    meter.revisit("A", 3.0)
    meter.revisit("A", 2.0)
    assert meter.forgetting("A") == 1.0
    meter.record("A", 0.5)
    assert meter.summary().num_models == 0
    meter.revisit("A", 0.5)
    assert meter.forgetting("A") == 0.0
    meter.reset()
    assert meter.summary().num_models == 0
    with pytest.raises(KeyError, match="Expected a recorded model, but got 'A'"):
        meter.revisit("A", 1.0)


def test_state_of_a_meter() -> None:
    meter = metered([(1, 2), (2, 5)])
    meter.record("not yet revisited", 1.0)
    other = ForgettingMeter()
    state = meter.state_dict()
    other.load_state_dict(state)
    state["first"].clear()
    assert other.summary() == meter.summary()
    meter.revisit("not yet revisited", 8.0)
    assert other.summary() != meter.summary()
    other.revisit("not yet revisited", 8.0)
    assert other.summary() == meter.summary()


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=12))
def test_summary_is_between_the_extremes(pairs: list[tuple[float, float]]) -> None:
    summary = metered(pairs).summary()
    differences = [second - first for first, second in pairs]
    assert summary.maximum == max(differences)
    for value in (summary.mean, summary.best):
        assert min(differences) - 1e-6 <= value <= max(differences) + 1e-6
    if len(pairs) <= 5:
        assert summary.best == pytest.approx(summary.mean, abs=1e-6)


# ---- the mean's interval -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_mean_interval_is_scipys(confidence: float) -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=7)
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    found = mean_interval(values.tolist(), confidence)
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), low, high))


def test_mean_interval_of_one_value_and_of_none() -> None:
    assert mean_interval([2.0]) == Interval(2.0, None, None)
    with pytest.raises(ValueError, match="Expected at least one value"):
        mean_interval([])


@pytest.mark.parametrize("num_seeds", [2, 5])
def test_mean_interval_covers_as_often_as_it_says(num_seeds: int) -> None:
    draws = np.random.default_rng(0).normal(1.0, 3.0, size=(2000, num_seeds))
    covered = sum(i.low <= 1.0 <= i.high for i in map(mean_interval, draws))
    # Three standard deviations of a binomial around 95 %.
    assert abs(covered / 2000 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)


# ---- the reduction ---------------------------------------------------------------------------------------------------


def every_resample(held: list[float], free: list[float], confidence: float) -> tuple[float, float]:
    """The percentile interval over all nⁿ resamples of pairs."""
    ratios = []
    for rows in itertools.product(range(len(held)), repeat=len(held)):
        total_held, total_free = sum(held[i] for i in rows), sum(free[i] for i in rows)
        ratios.append(1 - total_held / total_free if total_free > 0 else -math.inf)
    ratios.sort()
    low, high = (ratios[math.ceil(q * len(ratios)) - 1] for q in ((1 - confidence) / 2, (1 + confidence) / 2))
    return low, high


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
def test_reduction_is_that_of_every_resample(confidence: float) -> None:
    held, free = [0.01, 0.05, 0.02], [0.30, 0.20, 0.42]
    found = reduction(held, free, confidence=confidence, num_resamples=50_000)
    assert found.mean == pytest.approx(1 - 0.08 / 0.92)
    assert (found.low, found.high) == pytest.approx(every_resample(held, free, confidence))


def test_pairs_are_resampled_together() -> None:
    """Where each seed is reduced by the same share, resampling whole seeds leaves no doubt about it."""
    found = reduction([0.01, 0.04, 0.09], [0.1, 0.4, 0.9])
    assert (found.mean, found.low, found.high) == pytest.approx((0.9, 0.9, 0.9))


def test_the_bootstrap_is_seeded() -> None:
    held, free = np.random.default_rng(0).uniform(0.1, 1, size=(2, 6))
    first = reduction(held, free, num_resamples=99)
    assert first == reduction(held, free, num_resamples=99)
    assert first != reduction(held, free, num_resamples=99, seed=1)


@pytest.mark.parametrize("free", [[0.1, -0.1], [-0.2, 0.1], [0.0, 0.0]])
def test_no_forgetting_to_reduce(free: list[float]) -> None:
    assert reduction([0.5, 0.1], free) is None
    assert reduction([0.5], [-0.1]) is None


def test_reduction_of_one_seed_has_no_interval() -> None:
    assert reduction([0.25], [0.5]) == Interval(0.5, None, None)


def test_protection_that_harms_is_a_negative_reduction() -> None:
    assert reduction([0.4, 0.4], [0.2, 0.2]) == Interval(-1.0, -1.0, -1.0)


def test_full_protection_and_improvement() -> None:
    assert reduction([0.0, 0.0], [0.2, 0.4]) == Interval(1.0, 1.0, 1.0)
    assert reduction([-0.1, -0.1], [0.2, 0.2]).mean == 1.5


def test_resamples_without_forgetting_leave_that_end_open() -> None:
    """One seed of two does not forget: a quarter of the resamples has nothing to reduce."""
    held, free = [0.1, 0.1], [0.5, -0.1]
    found = reduction(held, free)
    assert found.mean == pytest.approx(0.5)
    assert found.low is None
    assert found.high == pytest.approx(0.8)
    # A narrower interval leaves those out.
    assert reduction(held, free, confidence=0.4).low == pytest.approx(0.5)


@pytest.mark.parametrize(("held", "free"), [([], []), ([0.1], [0.1, 0.2]), ([0.1, 0.2], [0.1])])
def test_arms_of_different_seeds_are_refused(held: list[float], free: list[float]) -> None:
    message = f"Expected one value per seed in both arms, but got {len(held)} and {len(free)}"
    with pytest.raises(ValueError, match=message):
        reduction(held, free)


def test_the_bootstrap_does_not_depend_on_how_many_seeds_are_drawn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And never needs memory for all resamples at once."""
    held, free = np.random.default_rng(1).normal(0.1, 0.05, (2, 37))
    free += 0.2
    whole = reduction(held, free, num_resamples=1000)
    for drawn in (1, 37, 1000, 36_999):
        monkeypatch.setattr(forgetting, "_MOST_DRAWN", drawn)
        assert reduction(held, free, num_resamples=1000) == whole
