"""The tables of a comparison of strategies and protections, and what the page shows of it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import table as rich

from forgetless.comparison import Measure, Row
from forgetless.comparison.result import ComparisonResult
from forgetless.errors import InputError
from forgetless.evaluation.benchmark import task_difference
from forgetless.evaluation.records import Beats
from forgetless.report import table
from forgetless.report.baselines import baseline_notes, baselines_table, beats_table
from forgetless.report.canvas import picture
from forgetless.report.ceiling import ceiling_notes, ceiling_rows
from forgetless.report.comparison.figures import colour_of, forgetting_against_quality
from forgetless.report.comparison.findings import decimals, headline_sentences, in_per_cent, scale_of
from forgetless.report.formats import counted, duration, plus_minus, probability
from forgetless.report.table import BEST, BETTER, WORSE
from forgetless.search.result import epochs_text
from forgetless.strategies import STRATEGIES

_MANY = 4  # that are named one by one

_TITLES: Mapping[Measure, str] = {
    Measure.FORGETTING: "mean",
    Measure.FORGETTING_BEST: "best 5",
    Measure.FORGETTING_MAX: "maximum",
    Measure.MULTI_MODEL: "multi-model",
    Measure.FOUND_MEAN: "mean",
    Measure.FOUND_BEST: "best",
    Measure.REGRET: "regret",
    Measure.SURPASSES: "surpasses",
    Measure.TAU: "τ",
    Measure.TAU_TOP: "τ top",
    Measure.SECONDS: "time",
}


def comparison_table(result: ComparisonResult) -> rich.Table:
    """All rows, ranked by final quality, in two or three tables; at most 80 columns wide."""
    return table.in_terminal(comparison_tables(result), comparison_notes(result))


def comparison_tables(result: ComparisonResult) -> list[table.Table]:
    """The same for the page."""
    asked = result.config.measures
    measure = (result.about.measure if result.about else "not judged yet").replace("_", " ") + in_per_cent(result)
    better = f"{'smaller' if result.lower_is_better(Measure.FOUND_MEAN) else 'larger'} is better"
    rank = (Measure.TAU, Measure.TAU_TOP, Measure.SECONDS)
    parts = {
        f"What is selected: {measure}; {better}": [m for m in asked if m.is_quality],
        f"Forgetting err₂ − err₁, {result.unit.name}": [m for m in asked if m.is_forgetting],
        "Rank by shared weights, and cost" if Measure.TAU in asked else "Cost": [m for m in asked if m in rank],
    }
    tables = []
    for title, measures in parts.items():
        columns = dict(_column(result, measure) for measure in measures)
        rows = [
            table.Row(f"{i} {row}", [cells[row] for cells in columns.values()], label=str(row), colour=colour_of(row))
            for i, row in enumerate(result.ranked, start=1)
        ]
        if Measure.TAU in measures:
            rows += ceiling_rows(result.about, tuple(columns))
        tables.append(table.Table(title, tuple(columns), rows, first=""))
    return [*tables, *_without_a_search(result)]


def _has_rules(result: ComparisonResult) -> bool:
    """Whether there are rules without a search: with a truth, where they were asked; else random alone."""
    return bool(result.baselines) or result.config.evaluation.truth is None


def _without_a_search(result: ComparisonResult) -> list[table.Table]:
    """Which rows select better than rules without a search, and what these select."""
    if not _has_rules(result):
        return []
    scale, summaries = scale_of(result, Measure.FOUND_MEAN), result.baseline_summaries
    ranks = {row: i for i, row in enumerate(result.ranked, start=1)}

    def name(beats: Beats) -> str:
        row = Row(beats.strategy, beats.protection)
        return f"{ranks[row]} {row}"

    def look(beats: Beats) -> tuple[str, str]:
        row = Row(beats.strategy, beats.protection)
        return str(row), colour_of(row)

    digits = decimals([result.interval(row, Measure.FOUND_MEAN) for row in result.ranked], scale)
    tables = (
        beats_table(result.beats, name, digits, scale, first="", look=look),
        baselines_table(summaries, digits, scale),
    )
    return [each for each in tables if each is not None]


def _column(result: ComparisonResult, measure: Measure) -> tuple[str, dict[Row, table.Cell]]:
    """Its head, and a cell for every row, all in one unit and with as many digits."""
    intervals = {row: result.interval(row, measure) for row in result.ranked}
    scale, name = scale_of(result, measure), _TITLES[measure]
    if measure is Measure.SECONDS:
        most = max((interval.mean for interval in intervals.values() if interval), default=0.0)
        divisor, unit = (1.0, "s") if most < 100 else (60.0, "min") if most < 6000 else (3600.0, "h")
        scale, name = 1 / divisor, f"{name}, {unit}"
    digits, best = decimals(intervals.values(), scale), result.best(measure)
    marks = {test.row: test.mark for test in result.tests if test.measure == measure}
    return name, {
        row: table.Cell(plus_minus(interval, digits, scale), marks.get(row), row in best)
        for row, interval in intervals.items()
    }


def comparison_notes(result: ComparisonResult) -> list[str]:
    """How to read the tables, and what is missing."""
    config, seeds = result.config, result.config.search.run.seeds
    notes = []
    if result.missing:
        names = list(result.missing)
        more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
        notes.append(f"Missing: {', '.join(names[:_MANY])}{more} (of {result.num_units}).")
        notes.append("Go on with `forgetless resume`.")
    if lacking := [f"{name} of {row}: {count} of {wanted} seeds" for name, row, count, wanted in result.lacking]:
        notes.append("Left out are seeds that gave no number, as where all diverged or a file was damaged:")
        notes += _lines(lacking)
    if any(result.interval(row, Measure.FOUND_MEAN) for row in result.ranked):
        # Of fewer samples a search selects all.
        best = min(config.evaluation.top, config.search.selection.final_samples)
        notes.append(f"Ranked by the mean of the {best} best of each search. {BEST}: best of its column.")
    notes += _legend(result)
    if seeds > 1:
        notes.append(f"±: half the 95 % interval over {seeds} seeds, for one number, not corrected.")
    else:
        notes.append("One seed gives no interval.")
    begun = [n for n, search in result.searches.items() if STRATEGIES[n].trains_shared_weights and search.epochs()]
    epochs = {name: epochs_text(result.forgetting_epochs(name)) for name in begun}
    if len(set(epochs.values())) == 1:
        notes.append(f"Forgetting: mean over {epochs[begun[0]]}. Negative is progress.")
    elif epochs:
        lines = _lines([f"{text} of {name}" for name, text in epochs.items()])
        notes += ["Forgetting: mean over", *lines, "Negative is progress."]
    if config.evaluation.truth is not None:
        notes.append("Regret: to the best of the space. Surpasses: chance that a random one is worse.")
        searches_of = map(config.search_of, config.strategy_names)
        differences = dict.fromkeys(task_difference(config.evaluation.truth, search) for search in searches_of)
        notes += filter(None, differences)
    else:
        notes.append("Surpasses: chance that an architecture drawn uniformly is worse.")
    if _has_rules(result):
        notes += baseline_notes(result.beats, result.undefined)
    if Measure.TAU in config.measures:
        notes.append("τ: Kendall's, of rewards on shared weights with the truth; top: best 20 %.")
        notes += ceiling_notes(result.about)
    return [*notes, "Time: of one search, beside others; differences in it are not tested."]


def _lines(items: Sequence[str]) -> list[str]:
    """A list, an item per line."""
    return [f"  {item}{'.' if i == len(items) else ','}" for i, item in enumerate(items, start=1)]


def _legend(result: ComparisonResult) -> list[str]:
    """What a mark means."""
    config = result.config
    pairs = [pair for measure in config.measures for pair in config.pairs(measure)]
    if not pairs:
        return ["Nothing is tested: there is one row, or none to test against."]
    references = list(dict.fromkeys(reference for _, reference in pairs))
    if config.tests.reference in config.strategy_names:
        against = str(references[0])
    else:
        of_strategy = [f"{r.protection} of the same strategy" for r in references if r.is_search]
        drawn = [str(reference) for reference in references if not reference.is_search]
        against = (of_strategy or drawn)[0] + (f" (which itself: {drawn[0]})" if of_strategy and drawn else "")
    legend = [f"{BETTER} better, {WORSE} worse than {against}", "(sign flips over seeds, Holm over each column, 5 %)."]
    try:
        config.expect_seeds()
    except InputError:  # they were allowed
        legend.append(f"With {counted(config.search.run.seeds, 'seed')} no difference can be significant.")
    return legend


# The page


def comparison_section(result: ComparisonResult) -> dict[str, Any]:
    """What section.html shows of a comparison, finished or not."""
    seconds = [value for row in result.ranked for value in result.values(row, Measure.SECONDS).values()]
    took = f"The searches took {duration(math.fsum(seconds))} of one process in all"
    return {
        "settings": _settings(result),
        "sentences": headline_sentences(result),
        "missing": list(result.missing.items()),
        "figures": _figures(result),
        "tables": comparison_tables(result),
        "notes": comparison_notes(result),
        "tests": _tests(result),
        "time": f"{took}, without training anything from scratch." if seconds else "",
    }


def _settings(result: ComparisonResult) -> str:
    search, schedule = result.config.search, result.config.search.schedule
    return (
        f"{search.space.kind.label}, {search.data.name}, strategies {', '.join(result.config.strategy_names)}, "
        f"{schedule.epochs} epochs of {schedule.models_per_epoch} models × {schedule.batches_per_model} batches, "
        f"{search.optimizer.name} at {search.optimizer.learning_rate:g}{search.rates.in_words}, "
        f"{counted(search.run.seeds, 'seed')}"
    )


def _tests(result: ComparisonResult) -> list[list[str]]:
    """Every test: of what, which row, against which, the difference in the unit of its column, and both p."""
    rows = []
    for test in result.tests:
        scale = scale_of(result, test.measure)
        shown = plus_minus(test.difference, decimals([test.difference], scale), scale)
        p_values = map(probability, (test.p, test.adjusted_p))
        name = test.measure.replace("_", " ")
        rows.append([name, str(test.row), str(test.reference), shown, *p_values, test.mark or ""])
    return rows


def _figures(result: ComparisonResult) -> list[dict[str, str]]:
    try:
        figure = forgetting_against_quality(result)
    except InputError:  # nothing to draw yet
        return []
    caption = (
        f"Mean over {result.config.search.run.seeds} seeds with the 95 % interval of each. The best place is the upper "
        "left: little forgetting, good architectures."
    )
    return [picture(figure, caption)]
