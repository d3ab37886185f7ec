"""What a comparison found, in sentences that say no more than its tests allow."""

from collections.abc import Mapping
from typing import Any

from forgetless.comparison import Measure, Row
from forgetless.comparison.result import ComparisonResult
from forgetless.report.comparison.tables import decimals, in_per_cent, scale_of
from forgetless.report.formats import label, plus_minus, probability

_VERDICTS = {
    Measure.FOUND_MEAN: ("quality", "Significantly better architectures", "Significantly worse ones"),
    Measure.FORGETTING: ("forgetting", "Significantly less forgetting", "Significantly more forgetting"),
}


def headline_sentences(result: ComparisonResult) -> list[str]:
    """The sentences, at least one; the first says the most."""
    first = result.ranked[0]
    interval = result.interval(first, Measure.FOUND_MEAN)
    if interval is None:
        done = result.num_units - len(result.missing)
        return [f"Nothing has been judged yet: {done} of {result.num_units} searches are finished."]
    scale = scale_of(result, Measure.FOUND_MEAN)
    number = plus_minus(interval, decimals([interval], scale), scale) + in_per_cent(result).removeprefix(" in")
    told = [f"{_named(first)} selects the best architectures: {quality_name(result)} {number}."]
    if test := result.test(first, Measure.FOUND_MEAN):
        p = probability(test["adjusted_p"])
        verdict = f"is {'' if test['mark'] else 'not '}significant (p {p if '<' in p else f'= {p}'})"
        told.append(f"Its difference from {_named(Row(*test['reference']))} {verdict}.")
    if equals := len(result.best(Measure.FOUND_MEAN) - {first}):
        told.append(f"{equals} other row{'s select' if equals > 1 else ' selects'} equally good ones.")
    for measure, (name, better, worse) in _VERDICTS.items():
        tests = [test for test in result.tests if test["measure"] == measure]
        found: dict[str, list[str]] = {}
        for test in tests:
            if test["mark"]:
                verdict = f"{better if test['mark'] == 'better' else worse} than {_in_general(result, test)}"
                found.setdefault(verdict, []).append(_named(Row(*test["row"])))
        told += [f"{verdict}: {', '.join(rows)}." for verdict, rows in found.items()]
        if tests and not found:
            told.append(f"No difference in {name} is significant.")
    return told


def quality_name(result: ComparisonResult) -> str:
    """What quality is, without its unit."""
    return str(result.about.get("measure", "quality")).replace("_", " ").partition(",")[0]


def _named(row: Row) -> str:
    """A row in a sentence."""
    return f"{row.strategy} with {label(row.protection)}" if row.is_search else row.strategy


def _in_general(result: ComparisonResult, test: Mapping[str, Any]) -> str:
    """What a row was tested against, in the same words for all strategies."""
    reference = Row(*test["reference"])
    is_own = reference.strategy == test["row"][0] and result.config.tests.reference not in result.config.strategy_names
    return f"the same strategy with {label(reference.protection)}" if is_own else _named(reference)
