"""What searches selected, against architectures drawn uniformly, and how well their shared weights rank.

Source of the question and of the measures: Yu et al., Evaluating the Search Phase of Neural Architecture Search, ICLR
2020, arXiv:1902.08142. docs/evaluation.md explains each number.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from forgetless.errors import InputError
from forgetless.evaluation.ranking import (
    RankCorrelation,
    estimated_probability_of_surpassing_random,
    probability_of_surpassing_random,
    rank_correlations,
)
from forgetless.evaluation.significance import paired_permutation_test, permutation_test
from forgetless.evaluation.truth import Truth
from forgetless.forgetting import mean_interval
from forgetless.search import SearchArm, SearchConfig
from forgetless.search.records import DerivedRecord, EpochRecord, SearchRecord
from forgetless.search.setup import generator_for, make_space

Record = dict[str, Any]


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
    """The searches of a run that have handed something over.

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
) -> Record:
    """One search against as many random architectures as it selected.

    Args:
        search: The search.
        known: Stand-alone values by architecture; NaN where one diverged.
        top: How many architectures it selects: the first of its ranking, all if it has fewer.
        lower_is_better: Whether values are errors.
        truth: The value of every architecture, if it is known.
        estimates: What its shared weights say of architectures that the truth has; without a truth not looked at.

    Returns:
        A JSON-serialisable record; docs/metrics.md explains the keys. Means and bests are over the architectures that
        did not diverge, and None where all did. The probability of surpassing random is the mean over the handed-over
        architectures of the chance that one drawn uniformly is worse: ½ for random search.
    """
    sign = -1.0 if lower_is_better else 1.0
    found = search.ranking[:top]
    random = random_architectures(search.config, search.arm.seed, len(found))
    groups = {name: [known[a] for a in each] for name, each in (("found", found), ("random", random))}
    qualities = {name: [sign * value for value in group] for name, group in groups.items()}
    best = max(filter(math.isfinite, qualities["found"]), default=-math.inf)
    surpassed = [
        estimated_probability_of_surpassing_random(quality, qualities["random"])
        if truth is None
        else probability_of_surpassing_random(quality, truth.qualities)
        for quality in qualities["found"]
    ]
    record: Record = {
        "run": search.run,
        "strategy": search.config.strategy_name,
        **dataclasses.asdict(search.arm),
        "found": [[str(architecture), _or_none(v)] for architecture, v in zip(found, groups["found"], strict=True)],
        "random": [[str(architecture), _or_none(v)] for architecture, v in zip(random, groups["random"], strict=True)],
    }
    for name, group in qualities.items():
        finite = [quality for quality in group if math.isfinite(quality)]
        record[f"{name}_mean"] = sign * statistics.fmean(finite) if finite else None
        record[f"{name}_best"] = sign * max(finite) if finite else None
    record["probability_of_surpassing_random"] = statistics.fmean(surpassed)
    record["regret"] = None
    if truth is not None and math.isfinite(best):
        record["regret"] = max(0.0, float(truth.qualities.max()) - best)
    record |= _ranking(truth, estimates)
    return {**record, "seconds": search.seconds}


def _ranking(truth: Truth[Any] | None, estimates: Estimates | None) -> Record:
    if truth is None or estimates is None:
        return dict.fromkeys(("tau", "tau_unique", "tau_top"))
    positions = truth.positions(estimates.architectures)
    groups = truth.groups[positions]
    found = rank_correlations(np.asarray(estimates.rewards), truth.qualities[positions], groups.tolist())
    return {"tau": _tau(found.overall), "tau_unique": _tau(found.unique), "tau_top": _tau(found.top)}


def _tau(correlation: RankCorrelation) -> Record:
    tau = None if correlation.tau is None else dataclasses.asdict(correlation.tau)
    return {"tau": tau, "num_architectures": correlation.num_architectures}


def summarise(records: Sequence[Record], *, lower_is_better: bool) -> list[Record]:
    """Means over the seeds of each strategy and protection, and whether they beat random architectures.

    The test of several seeds is the one-sided sign-flip test of found_mean − random_mean, seed by seed; that of one
    seed a permutation test between its two groups of architectures.

    Args:
        records: Of `evaluate`.
        lower_is_better: Whether values are errors.

    Returns:
        One JSON-serialisable record per run, strategy and protection, in the order of the records.
    """
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["run"], record["strategy"], record["protection"]), []).append(record)
    summary = []
    for (run, strategy, protection), group in groups.items():
        measures = ("found_mean", "found_best", "random_mean", "random_best", "regret", "seconds")
        entry: Record = {"run": run, "strategy": strategy, "protection": protection, "num_seeds": len(group)}
        for name in (*measures, "probability_of_surpassing_random"):
            entry[name] = _interval([record[name] for record in group])
        for name in ("tau", "tau_unique", "tau_top"):
            entry[name] = _interval([value_of_tau(record[name]) for record in group])
        summary.append({**entry, **_test(group, -1.0 if lower_is_better else 1.0)})
    return summary


def _test(group: Sequence[Record], sign: float) -> Record:
    """How much better than random, and how often chance alone does that."""
    pairs = [(r["found_mean"], r["random_mean"]) for r in group if None not in {r["found_mean"], r["random_mean"]}]
    gains = [sign * (found - random) for found, random in pairs]
    if len(gains) > 1:
        return {"gain": _interval(gains), "p": paired_permutation_test(gains).p, "test": "seeds"}
    if len(gains) == 1 and len(group) == 1:
        found, random = ([sign * _or_nan(value) for _, value in group[0][name]] for name in ("found", "random"))
        return {"gain": _interval(gains), "p": permutation_test(found, random).p, "test": "architectures"}
    return {"gain": _interval(gains), "p": None, "test": None}


def value_of_tau(correlation: Record | None) -> float | None:
    """Kendall's tau of a record of `evaluate`; None where there is none.

    Args:
        correlation: What the record has under `tau`, `tau_unique` or `tau_top`.
    """
    return None if correlation is None or correlation["tau"] is None else float(correlation["tau"]["mean"])


def _interval(values: Sequence[float | None]) -> Record | None:
    """Over the seeds that have a value; None where none has."""
    present = [value for value in values if value is not None]
    return dataclasses.asdict(mean_interval(present)) if present else None


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
