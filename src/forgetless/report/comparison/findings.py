"""What a comparison found, in sentences that say no more than its tests allow."""

import math
import statistics
from collections.abc import Iterable

from forgetless.comparison import Measure, Row
from forgetless.comparison.records import DifferenceTest
from forgetless.comparison.result import ComparisonResult
from forgetless.forgetting import Interval
from forgetless.report.formats import label, plus_minus, probability

_ENOUGH = 3  # decimals
_QUALITY = (Measure.FOUND_MEAN, Measure.FOUND_BEST, Measure.REGRET)

_VERDICTS = {
    Measure.FOUND_MEAN: ("quality", "Significantly better architectures", "Significantly worse ones"),
    Measure.FORGETTING: ("forgetting", "Significantly less forgetting", "Significantly more forgetting"),
}


def headline_sentences(result: ComparisonResult) -> list[str]:
    """The sentences, at least one; the first says the most."""
    first = result.ranked[0]
    interval = result.interval(first, Measure.FOUND_MEAN)
    if interval is None:
        done, wanted = result.progress
        return [f"Nothing has been judged yet: {done} of {wanted} searches are finished."]
    scale = scale_of(result, Measure.FOUND_MEAN)
    number = plus_minus(interval, decimals([interval], scale), scale) + in_per_cent(result).removeprefix(" in")
    told = [f"{_named(first)} selects the best architectures: {quality_name(result)} {number}."]
    if test := result.test(first, Measure.FOUND_MEAN):
        p = probability(test.adjusted_p)
        verdict = f"is {'' if test.mark else 'not '}significant (p {p if '<' in p else f'= {p}'})"
        told.append(f"Its difference from {_named(test.reference)} {verdict}.")
    if equals := len(result.best(Measure.FOUND_MEAN) - {first}):
        told.append(f"{equals} other row{'s select' if equals > 1 else ' selects'} equally good ones.")
    for measure, (name, better, worse) in _VERDICTS.items():
        tests = [test for test in result.tests if test.measure == measure]
        found: dict[str, list[str]] = {}
        for test in tests:
            if test.mark:
                verdict = f"{better if test.mark == 'better' else worse} than {_in_general(result, test)}"
                found.setdefault(verdict, []).append(_named(test.row))
        told += [f"{verdict}: {', '.join(rows)}." for verdict, rows in found.items()]
        if tests and not found:
            told.append(f"No difference in {name} is significant.")
    return told


def quality_name(result: ComparisonResult) -> str:
    """What quality is, without its unit."""
    return result.about.measure.replace("_", " ").partition(",")[0] if result.about else "quality"


def _named(row: Row) -> str:
    """A row in a sentence."""
    return f"{row.strategy} with {label(row.protection)}" if row.is_search else row.strategy


def _in_general(result: ComparisonResult, test: DifferenceTest) -> str:
    """What a row was tested against, in the same words for all strategies."""
    reference, config = test.reference, result.config
    is_own = reference.strategy == test.row.strategy and config.tests.reference not in config.strategy_names
    return f"the same strategy with {label(reference.protection)}" if is_own else _named(reference)


# Numbers


def scale_of(result: ComparisonResult, measure: Measure) -> float:
    """Shares of wrong images are shown in per cent; everything else is as it is recorded."""
    is_share = measure.is_forgetting or (measure in _QUALITY and result.lower_is_better(Measure.FOUND_MEAN))
    return result.unit.scale if is_share else 1.0


def in_per_cent(result: ComparisonResult) -> str:
    """Said of quality, where it is."""
    return " in %" if scale_of(result, Measure.FOUND_MEAN) != 1.0 else ""


def decimals(intervals: Iterable[Interval | None], scale: float) -> int:
    """As many that half a usual interval has two digits, but no more than give a usual mean three; at least one.

    Three are enough where half a usual interval is a thousandth or more: four columns of more do not fit a terminal.
    """
    present = [interval for interval in intervals if interval is not None]
    halves = [scale * (interval.high - interval.mean) for interval in present if interval.high is not None]
    means = [scale * abs(interval.mean) for interval in present]
    wanted = [
        digits - 1 - math.floor(math.log10(statistics.median(some)))
        for digits, values in ((2, halves), (3, means))
        if (some := [value for value in values if value > 0])
    ]
    found = max(1, min(wanted, default=2))
    return min(found, _ENOUGH) if halves and statistics.median(halves) >= 10**-_ENOUGH else found
