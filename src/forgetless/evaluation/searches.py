"""What searches selected, against architectures drawn uniformly, and how well their shared weights rank.

Source of the question and of the measures: Yu et al., Evaluating the Search Phase of Neural Architecture Search, ICLR
2020, arXiv:1902.08142. docs/evaluation.md explains each number.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from forgetless.errors import InputError
from forgetless.evaluation.ranking import (
    RankCorrelation,
    estimated_probability_of_surpassing_random,
    probability_of_surpassing_random,
    rank_correlations,
)
from forgetless.evaluation.records import JudgedSearch, JudgedSummary, Valued
from forgetless.evaluation.significance import paired_permutation_test, permutation_test
from forgetless.evaluation.truth import Truth
from forgetless.forgetting import interval_of_known
from forgetless.search import SearchArm, SearchConfig
from forgetless.search.records import DerivedRecord, EpochRecord, SearchRecord
from forgetless.search.setup import generator_for, make_space


@dataclass(frozen=True)
class FinishedSearch:
    """One search that came to its end.

    Attributes:
        run: Where its records are, for people.
        config: What it was asked to do.
        arm: Its seed and protection.
        ranking: The architectures that it selected, best first by its own reward.
        seconds: What the search took, without training anything from scratch.
    """

    run: str
    config: SearchConfig
    arm: SearchArm
    ranking: tuple[Any, ...]
    seconds: float


@dataclass(frozen=True)
class Estimates:
    """How good the shared weights of one search find some architectures.

    Attributes:
        architectures: Drawn uniformly, or all of the space.
        rewards: One for each; larger is better.
    """

    architectures: tuple[Any, ...]
    rewards: tuple[float, ...]


def finished_searches(run: str, config: SearchConfig, records: Sequence[SearchRecord]) -> list[FinishedSearch]:
    """The searches of a run that have selected something.

    Args:
        run: Where the records are, for messages.
        config: Of the run.
        records: Its records.

    Returns:
        One per arm that derived an architecture, in the order of the records.

    Raises:
        InputError: If there is none.
    """
    space = make_space(config)
    found = []
    for derived in records:
        if not isinstance(derived, DerivedRecord):
            continue
        mine = [record for record in records if isinstance(record, EpochRecord) and record.arm == derived.arm]
        ranked = [text for text, _ in derived.candidates or ()] or [derived.architecture]
        # Measuring interference is no part of a search.
        phases = [seconds for r in mine for phase, seconds in r.seconds.items() if phase != "interference"]
        found.append(FinishedSearch(run, config, derived.arm, tuple(map(space.parse, ranked)), math.fsum(phases)))
    if not found:
        raise InputError(
            f"Expected a finished search in {run}, but got none with a derived architecture. Go on with `forgetless "
            "resume`, or search with --final-samples above 0."
        )
    return found


def random_architectures(config: SearchConfig, seed: int, number: int) -> list[Any]:
    """Architectures drawn uniformly, the same for every search of this space and seed.

    Args:
        config: Decides the space.
        seed: Of the search that they are compared with.
        number: How many.
    """
    generator, space = generator_for(seed, "evaluation"), make_space(config)
    return [space.sample(generator) for _ in range(number)]


def evaluate(
    search: FinishedSearch,
    known: Mapping[Any, float],
    *,
    top: int,
    lower_is_better: bool,
    truth: Truth[Any] | None = None,
    estimates: Estimates | None = None,
) -> JudgedSearch:
    """One search against as many random architectures as it selected.

    Args:
        search: The search.
        known: Stand-alone values by architecture; NaN where one diverged.
        top: How many architectures it selects: the first of its ranking, all if it has fewer.
        lower_is_better: Whether values are errors.
        truth: The value of every architecture, if it is known.
        estimates: What its shared weights say of architectures that the truth has; without a truth not looked at.

    Returns:
        Its record. Means and bests are over the architectures that did not diverge, and NaN where all did. The
        probability of surpassing random is the mean over the selected architectures of the chance that one drawn
        uniformly is worse: ½ for random search.
    """
    sign = -1.0 if lower_is_better else 1.0
    found = search.ranking[:top]
    random = random_architectures(search.config, search.arm.seed, len(found))
    mine, others = ([sign * known[architecture] for architecture in group] for group in (found, random))
    surpassed = [
        estimated_probability_of_surpassing_random(quality, others)
        if truth is None
        else probability_of_surpassing_random(quality, truth.qualities)
        for quality in mine
    ]
    best = max(filter(math.isfinite, mine), default=math.nan)
    has_regret = truth is not None and math.isfinite(best)
    return JudgedSearch(
        run=search.run,
        strategy=search.config.strategy_name,
        seed=search.arm.seed,
        protection=search.arm.protection,
        found=[Valued(str(architecture), known[architecture]) for architecture in found],
        random=[Valued(str(architecture), known[architecture]) for architecture in random],
        found_mean=sign * _mean_of_finite(mine),
        found_best=sign * best,
        random_mean=sign * _mean_of_finite(others),
        random_best=sign * max(filter(math.isfinite, others), default=math.nan),
        probability_of_surpassing_random=statistics.fmean(surpassed),
        regret=max(0.0, float(truth.qualities.max()) - best) if truth is not None and has_regret else None,
        **_correlations(truth, estimates),
        seconds=search.seconds,
    )


def _mean_of_finite(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan


def _correlations(truth: Truth[Any] | None, estimates: Estimates | None) -> dict[str, RankCorrelation | None]:
    if truth is None or estimates is None:
        return dict.fromkeys(("tau", "tau_unique", "tau_top"))
    positions = truth.positions(estimates.architectures)
    groups = truth.groups[positions]
    found = rank_correlations(np.asarray(estimates.rewards), truth.qualities[positions], groups.tolist())
    return {"tau": found.overall, "tau_unique": found.unique, "tau_top": found.top}


def summarise(records: Sequence[JudgedSearch], *, lower_is_better: bool) -> list[JudgedSummary]:
    """Means over the seeds of each strategy and protection, and whether they beat random architectures.

    The test of several seeds is the one-sided sign-flip test of found_mean − random_mean, seed by seed; that of one
    seed a permutation test between its two groups of architectures.

    Args:
        records: Of `evaluate`.
        lower_is_better: Whether values are errors.

    Returns:
        One record per run, strategy and protection, in the order of the records.
    """
    groups: dict[tuple[str, str, str], list[JudgedSearch]] = {}
    for record in records:
        groups.setdefault((record.run, record.strategy, record.protection), []).append(record)
    return [_summary(group, -1.0 if lower_is_better else 1.0) for group in groups.values()]


def _summary(group: Sequence[JudgedSearch], sign: float) -> JudgedSummary:
    first, gains = group[0], [sign * (record.found_mean - record.random_mean) for record in group]
    p, test = _test(group, gains, sign)
    return JudgedSummary(
        run=first.run,
        strategy=first.strategy,
        protection=first.protection,
        num_seeds=len(group),
        **{name: interval_of_known(record.number(name) for record in group) for name in _OVER_SEEDS},
        gain=interval_of_known(gains),
        p=p,
        test=test,
    )


_OVER_SEEDS = (
    *("found_mean", "found_best", "random_mean", "random_best", "regret", "seconds"),
    *("probability_of_surpassing_random", "tau", "tau_unique", "tau_top"),
)


def _test(
    group: Sequence[JudgedSearch], gains: Sequence[float], sign: float
) -> tuple[float | None, Literal["seeds", "architectures"] | None]:
    """How often chance alone gives as much more than random, and by which test."""
    known = [gain for gain in gains if math.isfinite(gain)]
    if len(known) > 1:
        return paired_permutation_test(known).p, "seeds"
    if len(known) == len(group) == 1:
        found, random = ([sign * each.value for each in drawn] for drawn in (group[0].found, group[0].random))
        return permutation_test(found, random).p, "architectures"
    return None, None
