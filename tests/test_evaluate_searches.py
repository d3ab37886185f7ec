"""What searches selected against random architectures: by hand on a made-up truth of a small space."""

import dataclasses
import math

import numpy as np
import pytest

from configs import derived_record, epoch_record, search_config
from forgetless.errors import InputError
from forgetless.evaluation.searches import (
    Estimates,
    FinishedSearch,
    evaluate,
    finished_searches,
    random_architectures,
    summarise,
)
from forgetless.evaluation.truth import Truth
from forgetless.search import SearchArm
from forgetless.spaces.recurrent import RecurrentSpace

CONFIG = search_config(nodes=1, seeds=6, epochs=1)
SPACE = RecurrentSpace(1)
CELLS = tuple(SPACE)
ERRORS = np.array([0.4, 0.1, 0.3, 0.2])
TRUTH = Truth(SPACE, CELLS, ERRORS, np.arange(4), "test_error", "a table")


KNOWN = dict(zip(CELLS, ERRORS.tolist(), strict=True))


def errors_of(architectures):
    return [KNOWN[architecture] for architecture in architectures]


def search_of(ranking, seed=0, protection="wpl"):
    return FinishedSearch("runs/one", CONFIG, SearchArm(seed, protection), tuple(ranking), 12.0)


def record_of(ranking, seed=0, top=2, **options):
    options = {"truth": TRUTH, "lower_is_better": True} | options
    return evaluate(search_of(ranking, seed), KNOWN, top=top, **options)


def test_found_and_random_are_as_many_and_random_ones_depend_on_the_seed_alone():
    record = record_of([CELLS[1], CELLS[3], CELLS[0]])
    assert record.found == [(str(CELLS[1]), 0.1), (str(CELLS[3]), 0.2)]
    drawn = random_architectures(CONFIG, 0, 2)
    assert [text for text, _ in record.random] == [str(architecture) for architecture in drawn]
    assert record_of([CELLS[0], CELLS[2]]).random == record.random
    assert (record.found_mean, record.found_best) == (pytest.approx(0.15), 0.1)
    assert record.random_mean == pytest.approx(np.mean(errors_of(drawn)))
    assert len(record_of([CELLS[1]], top=5).random) == 1


def test_regret_and_chance_by_hand():
    """0.2 is worse than one of the four and equal to itself: a draw is worse with probability 2/4, and ½ · 1/4."""
    record = record_of([CELLS[3], CELLS[1]])
    assert record.regret == 0.0
    assert record.probability_of_surpassing_random == pytest.approx(((0.5 + 0.125) + (0.75 + 0.125)) / 2)
    assert record_of([CELLS[2]]).regret == pytest.approx(0.2)


def test_without_a_truth_the_random_ones_stand_for_the_space():
    record = record_of([CELLS[1], CELLS[0]], truth=None)
    random = [value for _, value in record.random]
    chances = [np.mean([(r > own) + (r == own) / 2 for r in random]) for own in (0.1, 0.4)]
    assert record.probability_of_surpassing_random == pytest.approx(np.mean(chances))
    assert (record.regret, record.tau) == (None, None)


def test_ranks_of_shared_weights_are_compared_with_the_truth():
    """Rewards that rank as the errors do, but for one pair of six."""
    record = record_of([CELLS[1]], estimates=Estimates(CELLS, (0.1, 0.9, 0.3, 0.2)))
    assert record.tau.tau.mean == pytest.approx(4 / 6)
    assert record.tau.num_architectures == 4
    assert record.tau_top.tau is None


def test_larger_may_be_better():
    values = Truth(SPACE, CELLS, ERRORS, np.arange(4), "accuracy", "a table")
    record = record_of([CELLS[0], CELLS[2]], truth=values, lower_is_better=False)
    assert (record.found_best, record.regret) == (0.4, 0.0)


def test_what_diverged_is_left_out_of_means_and_loses_against_everything():
    known = {cell: math.nan if cell == CELLS[0] else 0.1 for cell in CELLS}
    record = evaluate(search_of([CELLS[0], CELLS[1]]), known, top=2, lower_is_better=True)
    assert record.to_dict()["found"] == [[str(CELLS[0]), None], [str(CELLS[1]), 0.1]]
    assert record.found_mean == 0.1
    alone = evaluate(search_of([CELLS[0]]), known, top=1, lower_is_better=True)
    assert [alone.to_dict()[key] for key in ("found_mean", "found_best")] == [None, None]


def test_summary_pairs_the_seeds():
    records = [record_of([CELLS[1]], seed, top=1) for seed in range(6)]
    (entry,) = summarise(records, lower_is_better=True)
    gains = [record.random_mean - record.found_mean for record in records]
    assert entry.gain.mean == pytest.approx(np.mean(gains))
    assert entry.num_seeds == 6
    assert entry.test == "seeds"
    # Gains of 0, where the random one is the best as well, have no sign to flip.
    assert entry.p == pytest.approx(0.5 ** sum(gain > 0 for gain in gains))


def test_one_seed_is_tested_over_architectures():
    record = record_of([CELLS[1], CELLS[3], CELLS[1]], top=3)
    (entry,) = summarise([record], lower_is_better=True)
    assert entry.test == "architectures"
    assert 0 < entry.p <= 1
    assert entry.gain.low is None


def test_finished_searches_are_those_with_a_derived_architecture():
    epoch = epoch_record(seed=0, protection="wpl", seconds={"train": 2.0, "interference": 5.0})
    derived = derived_record(seed=0, protection="wpl", architecture=str(CELLS[2]))
    ranked = dataclasses.replace(derived, candidates=[(str(CELLS[3]), 0.5), (str(CELLS[2]), None)])
    (search,) = finished_searches("runs/one", CONFIG, [epoch, epoch, ranked])
    assert (search.ranking, search.seconds) == ((CELLS[3], CELLS[2]), 4.0)
    (search,) = finished_searches("runs/one", CONFIG, [epoch, derived])
    assert search.ranking == (CELLS[2],)
    with pytest.raises(InputError, match=r"Expected a finished search in runs/one, but got none"):
        finished_searches("runs/one", CONFIG, [epoch])
