"""What baselines select, without a search, and which searches select better.

A baseline selects the architectures that it scores best, as many as a search does, from `--baselines` of the truth that
are drawn uniformly for each seed. *The best proxy* of a seed is the baseline, chance left out, whose selection was best
on all *other* seeds: a rule chosen on the seed that it is judged by would be better than any that can be had
beforehand. docs/evaluation.md explains it.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from forgetless.baselines import BASELINES
from forgetless.evaluation.ranking import rank_correlations
from forgetless.evaluation.records import BaselineSummary, Beats, JudgedBaseline, JudgedSearch, Valued
from forgetless.evaluation.scores import Scores
from forgetless.evaluation.significance import compare_pairs
from forgetless.evaluation.truth import Truth
from forgetless.forgetting import interval_of_known
from forgetless.search.setup import generator_for

RANDOM, PARAMETERS, BEST_PROXY = "random", "parameters", "best proxy"

Row = tuple[str, str, str]
"""Run, strategy and protection."""


def judge_baselines(
    run: str, seed: int, architectures: Sequence[Any], scores: Scores, truth: Truth[Any], top: int
) -> list[JudgedBaseline]:
    """What each baseline selects on one seed, by a truth.

    Args:
        run: Of the searches that it is compared with.
        seed: Of weights and batch.
        architectures: That were scored; members of the truth.
        scores: Baseline → a score for each.
        truth: Their quality.
        top: How many are selected: those with the best scores, of equal ones by chance.

    Returns:
        A record of each baseline.
    """
    positions = truth.positions(architectures)
    qualities, best = truth.qualities[positions], float(truth.qualities.max())
    sign = -1.0 if truth.lower_is_better else 1.0
    records = []
    for rule, values in scores.items():
        signed = BASELINES[rule].sign * np.asarray(values, dtype=float)
        estimates = np.where(np.isfinite(signed), signed, -math.inf)
        shuffled = torch.randperm(len(estimates), generator=generator_for(seed, f"baseline {rule}")).numpy()
        chosen = shuffled[np.argsort(-estimates[shuffled], kind="stable")][:top]
        ranks = rank_correlations(estimates, qualities, truth.groups[positions].tolist())
        found = [Valued(str(architectures[i]), float(truth.values[positions[i]])) for i in chosen.tolist()]
        selected = qualities[chosen]
        records.append(
            JudgedBaseline(
                run=run,
                rule=rule,
                seed=seed,
                found=found,
                found_mean=sign * float(selected.mean()),
                found_best=sign * float(selected.max()),
                regret=max(0.0, best - float(selected.max())),
                tau=None if ranks.overall.tau is None else ranks.overall.tau.mean,
                tau_top=None if ranks.top.tau is None else ranks.top.tau.mean,
            )
        )
    return records


def best_proxies(values: Mapping[str, Mapping[int, float]], *, lower_is_better: bool) -> dict[int, tuple[str, float]]:
    """The best single rule chosen on other seeds.

    For each seed s

        rule(s) = argbest over rules r of mean over t ≠ s of value(r, t)

    Args:
        values: Rule → seed → what it selects; all rules on the same seeds.
        lower_is_better: Whether values are errors.

    Returns:
        Seed → the rule, of equal ones the first, and its value on that seed; nothing for fewer than two seeds.

    >>> best_proxies({"a": {0: 1.0, 1: 5.0, 2: 2.0}, "b": {0: 3.0, 1: 3.0, 2: 3.0}}, lower_is_better=True)
    {0: ('b', 3.0), 1: ('a', 5.0), 2: ('a', 2.0)}
    """
    sign = 1.0 if lower_is_better else -1.0
    seeds = sorted(set.intersection(*(set(of_rule) for of_rule in values.values()))) if values else []
    found = {}
    for seed in seeds if len(seeds) > 1 else ():
        means = {r: statistics.fmean(sign * v[t] for t in seeds if t != seed) for r, v in values.items()}
        rule = min(means, key=means.__getitem__)
        found[seed] = (rule, values[rule][seed])
    return found


def beats_of(
    groups: Mapping[Row, Sequence[JudgedSearch]], baselines: Sequence[JudgedBaseline], *, lower_is_better: bool
) -> tuple[Beats, ...]:
    """Whether searches select better than random, than the number of parameters, and than the best proxy.

    The two-sided sign-flip test of the means of what is selected, seed by seed, Holm-corrected over all of the tests.

    Args:
        groups: Row → its searches, one per seed.
        baselines: Of their runs; without any only random is tested.
        lower_is_better: Whether values are errors.

    Returns:
        A record per row and reference that share a seed.
    """
    sign = -1.0 if lower_is_better else 1.0
    gains = {}
    for row, group in groups.items():
        for rule, others in _references(group, baselines, lower_is_better=lower_is_better).items():
            differences = [sign * (s.found_mean - others[s.seed]) for s in group if s.seed in others]
            if known := [difference for difference in differences if math.isfinite(difference)]:
                gains["\n".join(row), rule] = known
    return tuple(
        Beats(
            **dict(zip(("run", "strategy", "protection"), test.first.split("\n"), strict=True)),
            rule=test.second,
            num_seeds=len(gains[test.first, test.second]),
            gain=test.difference,
            p=test.p,
            adjusted_p=test.adjusted_p,
            mark=("better" if test.difference.mean > 0 else "worse") if test.significant else None,
        )
        for test in compare_pairs(gains)
    )


def _references(
    group: Sequence[JudgedSearch], baselines: Sequence[JudgedBaseline], *, lower_is_better: bool
) -> dict[str, dict[int, float]]:
    """Name → seed → the mean of what it selects, of what a row is tested against."""
    values: dict[str, dict[int, float]] = {}
    runs = {search.run for search in group}
    for each in baselines:
        if each.run in runs:
            values.setdefault(each.rule, {})[each.seed] = each.found_mean
    proxies = {rule: of_rule for rule, of_rule in values.items() if rule != RANDOM}
    chosen = best_proxies(proxies, lower_is_better=lower_is_better)
    return {
        RANDOM: {search.seed: search.random_mean for search in group},
        **({PARAMETERS: values[PARAMETERS]} if PARAMETERS in values else {}),
        **({BEST_PROXY: {seed: value for seed, (_, value) in chosen.items()}} if chosen else {}),
    }


def rows_of(searches: Sequence[JudgedSearch], *, by_run: bool = True) -> dict[Row, list[JudgedSearch]]:
    """Searches that differ in their seed alone.

    Args:
        searches: Any.
        by_run: Whether those of several runs are different rows.
    """
    groups: dict[Row, list[JudgedSearch]] = {}
    for each in searches:
        groups.setdefault((each.run if by_run else "", each.strategy, each.protection), []).append(each)
    return groups


def summarise_baselines(baselines: Sequence[JudgedBaseline], *, lower_is_better: bool) -> tuple[BaselineSummary, ...]:
    """Baselines over seeds, the best first; several runs of a seed count once.

    Args:
        baselines: Of `judge_baselines`.
        lower_is_better: Whether values are errors.
    """
    sign = 1.0 if lower_is_better else -1.0
    groups: dict[str, dict[int, JudgedBaseline]] = {}
    for each in baselines:
        groups.setdefault(each.rule, {}).setdefault(each.seed, each)
    found = [
        BaselineSummary(
            rule=rule,
            num_seeds=len(group),
            found_mean=interval_of_known(each.found_mean for each in group.values()),
            found_best=interval_of_known(each.found_best for each in group.values()),
            regret=interval_of_known(each.regret for each in group.values()),
            tau=interval_of_known(each.tau for each in group.values()),
            tau_top=interval_of_known(each.tau_top for each in group.values()),
        )
        for rule, group in groups.items()
    ]
    return tuple(sorted(found, key=lambda each: sign * each.found_mean.mean if each.found_mean else math.inf))
