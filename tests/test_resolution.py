"""The ceiling of a truth: Kendall's τ between halves of its training seeds, against slow references."""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from forgetless import InputError
from forgetless.evaluation import resolution
from forgetless.evaluation.ranking import rank_correlations
from forgetless.evaluation.records import Ceiling, JudgedBy
from forgetless.evaluation.resolution import Trainings, ceiling_of
from forgetless.evaluation.truth import read_truth
from forgetless.report.ceiling import ceiling_notes, ceiling_rows
from forgetless.spaces.recurrent import RecurrentSpace


def noisy(n, seeds, noise, generator):
    """Normal qualities, and trainings of them with normal noise."""
    quality = generator.normal(size=n)
    return quality, quality[:, None] + noise * generator.normal(size=(n, seeds))


def slow_tau(x, y):
    """τ-b pair by pair."""
    pairs = [(np.sign(a - b), np.sign(c - d)) for (a, c), (b, d) in itertools.combinations(zip(x, y, strict=True), 2)]
    norm = math.sqrt(sum(p != 0 for p, _ in pairs) * sum(q != 0 for _, q in pairs))
    return float(sum(p * q for p, q in pairs)) / norm


def slow_ceiling(values, statistic, half):
    """All splits by permuting the seeds; the best 20 % by a half, which is better the larger it is."""
    n, seeds = values.shape
    orders = itertools.permutations(range(seeds))
    splits = {frozenset((frozenset(order[:half]), frozenset(order[half : 2 * half]))) for order in orders}
    overall, best = [], []
    for split in splits:
        first, second = (statistic(values[:, sorted(group)], axis=1) for group in split)
        overall.append(slow_tau(first, second))
        for truth, estimates in ((first, second), (second, first)):
            top = np.argsort(-truth)[: n // 5]
            best.append(slow_tau(estimates[top], truth[top]))
    return len(splits), np.mean(overall), np.mean(best)


@pytest.mark.parametrize(("seeds", "half", "num_splits"), [(2, 1, 1), (3, 1, 3), (4, 2, 3), (5, 2, 15), (6, 3, 10)])
@pytest.mark.parametrize("name", ["mean", "median"])
def test_it_is_the_mean_over_all_splits(seeds, half, num_splits, name):
    _, values = noisy(30, seeds, 0.7, np.random.default_rng(seeds))
    found = ceiling_of(Trainings(values, name), lower_is_better=False)
    number, overall, best = slow_ceiling(values, getattr(np, name), half)
    assert (found.num_seeds, found.half, found.num_splits) == (seeds, half, num_splits)
    assert number == num_splits
    assert (found.tau, found.tau_top) == (pytest.approx(overall), pytest.approx(best))
    assert found.tau_unique == found.tau
    assert ceiling_of(Trainings(-values, name)) == found  # errors


def test_of_many_seeds_splits_are_drawn():
    _, values = noisy(30, 12, 0.7, np.random.default_rng(0))
    found = ceiling_of(Trainings(values, "mean"), lower_is_better=False)
    assert (found.half, found.num_splits) == (6, resolution.MOST_SPLITS)
    assert found == ceiling_of(Trainings(values, "mean"), lower_is_better=False)
    _, overall, best = 0, *np.mean([_split(values, order) for order in _orders(12, 100)], axis=0)
    assert (found.tau, found.tau_top) == (pytest.approx(overall, abs=0.03), pytest.approx(best, abs=0.15))


def _orders(number, draws):
    generator = np.random.default_rng(1)
    return [generator.permutation(number) for _ in range(draws)]


def _split(values, order):
    halves = [values[:, part].mean(1) for part in np.split(order, 2)]
    ranks = rank_correlations(*halves)
    return ranks.overall.tau.mean, ranks.top.tau.mean


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_a_perfect_ranking_reaches_more(noise):
    """Over all, and in the top, where to choose the best by all seeds would find a negative τ."""
    found, perfect = [], []
    for seed in range(6):
        quality, values = noisy(200, 3, noise, np.random.default_rng(seed))
        ceiling = ceiling_of(Trainings(values, "mean"), lower_is_better=False)
        ranks = rank_correlations(quality, values.mean(1))
        found.append((ceiling.tau, ceiling.tau_top))
        perfect.append((ranks.overall.tau.mean, ranks.top.tau.mean))
    found, perfect = np.mean(found, 0), np.mean(perfect, 0)
    assert (found < perfect).all()
    assert found[1] > -0.05
    # The relation of the docstring, for normal numbers.
    rho = math.sin(math.pi * found[0] / 2)
    of_mean = 3 * rho / (1 + 2 * rho)
    assert perfect[0] == pytest.approx(2 / math.pi * math.asin(math.sqrt(of_mean)), abs=0.04)


def test_notations_of_one_function_count_once_in_unique():
    _, values = noisy(12, 2, 1.0, np.random.default_rng(3))
    groups = np.array([*range(12), 0, 0, 0])
    found = ceiling_of(Trainings(values[groups], "mean"), groups, lower_is_better=False)
    alone = ceiling_of(Trainings(values, "mean"), lower_is_better=False)
    assert found.tau_unique == alone.tau
    assert found.tau != alone.tau


def test_where_there_is_none():
    one = np.array([[1.0], [2.0], [3.0]])
    assert ceiling_of(Trainings(one, "mean")) is None
    assert ceiling_of(Trainings(np.hstack([one] * 3), "std")) is None  # of a half of one seed
    assert ceiling_of(Trainings(np.ones((4, 4)), "mean")) is None  # nothing to rank
    few = ceiling_of(Trainings(np.hstack([one] * 2), "mean"))
    assert (few.tau, few.tau_top) == (1.0, None)
    with pytest.raises(InputError, match=r"at least 1 seed for the mean, but got the shape \(3, 0\)"):
        Trainings(np.ones((3, 0)), "mean")


def about(ceiling, **options):
    return JudgedBy(options=options, measure="e", description="Made up.", lower_is_better=True, ceiling=ceiling)


def test_a_line_of_the_table_and_a_note():
    ceiling = Ceiling(num_seeds=5, half=2, num_splits=15, tau=0.456, tau_unique=-0.01, tau_top=None)
    (row,) = ceiling_rows(about(ceiling, truth="t.csv"), ("regret", "τ", "τ unique", "τ top", "time"))
    assert list(row.cells) == ["–", "0.46", "−0.01", "–", "–"]
    assert "τ between 2 and 2 other seeds of the truth's 5," in " ".join(ceiling_notes(about(ceiling, truth="t.csv")))
    assert ceiling_notes(about(None, truth="t.csv")) == [
        "Ceiling of τ: unknown, as the truth has one number per architecture."
    ]
    assert ceiling_notes(about(None, truth=None)) == ceiling_rows(about(None, truth=None), ("τ",)) == []
    assert JudgedBy.from_dict(about(ceiling, truth="t").to_dict(), "a", "b") == about(ceiling, truth="t")
    older = {name: value for name, value in about(None, truth="t").to_dict().items() if name != "ceiling"}
    assert JudgedBy.from_dict(older, "a", "b") == about(None, truth="t")


def test_tables_of_means_have_no_ceiling(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("architecture,test_error,test_error_std\ntanh(0),1,0.1\nrelu(0),2,0.1\nidentity(0),3,0.1\n")
    assert read_truth(path, RecurrentSpace(1)).ceiling is None
    path.write_text("architecture,test_error_seed0,test_error_seed1\ntanh(0),1,2\nrelu(0),2,1\nidentity(0),3,4\n")
    found = read_truth(path, RecurrentSpace(1)).ceiling
    assert dataclasses.asdict(found)["tau"] == pytest.approx(1 / 3)
