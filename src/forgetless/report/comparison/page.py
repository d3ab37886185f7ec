"""Tables, picture and sentences of a comparison of protections and strategies."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from rich.table import Table
from rich.text import Text

from forgetless.comparison import Measure, Row
from forgetless.comparison.result import ComparisonResult
from forgetless.errors import InputError
from forgetless.evaluation.benchmark import task_difference
from forgetless.forgetting import Interval
from forgetless.report.canvas import (
    FONT,
    INK,
    QUIET,
    colour,
    data_uri,
    draw_interval,
    grid,
    place_legends,
    title_figure,
)
from forgetless.report.evaluation import probability, with_interval
from forgetless.report.search.figures import add_table
from forgetless.report.two_model.groups import duration, label
from forgetless.search.result import epochs_text
from forgetless.strategies import STRATEGIES

BEST, BETTER, WORSE = "*", "✓", "✗"
_STYLES = {"better": "green", "worse": "red", None: ""}
_SIGNS = {"better": BETTER, "worse": WORSE, None: ""}
_MARKERS = "osD^vP*X"
_ENOUGH = 3  # decimals
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
_QUALITY = (Measure.FOUND_MEAN, Measure.FOUND_BEST, Measure.REGRET)
_FORGETTING = (Measure.FORGETTING, Measure.FORGETTING_BEST, Measure.FORGETTING_MAX, Measure.MULTI_MODEL)


class Cell(NamedTuple):
    """A number with its interval, and what is to be said of it."""

    text: str
    mark: str | None = None
    is_best: bool = False

    @property
    def signs(self) -> str:
        """The marks as characters."""
        return BEST * self.is_best + _SIGNS[self.mark]


def comparison_table(result: ComparisonResult) -> Table:
    """All rows, ranked by final quality, in two or three tables; at most 80 columns wide.

    Args:
        result: A comparison, finished or not.

    Returns:
        The table, for `rich.console.Console.print`.
    """
    whole = Table.grid()
    for i, table in enumerate(comparison_tables(result)):
        signs = [max(len(cell.signs) for cell in column) for column in _columns_of(table)]
        rows = [[Text(f"{row['rank']} {row['row']}"), *map(_in_terminal, row["cells"], signs)] for row in table["rows"]]
        add_table(whole, "\n" * (i > 0) + table["title"], ("", *table["columns"]), rows)
    whole.add_row(Text("\n".join(comparison_notes(result)), style="dim"))
    return whole


def _columns_of(table: Mapping[str, Any]) -> list[list[Cell]]:
    return [[row["cells"][i] for row in table["rows"]] for i in range(len(table["columns"]))]


def _in_terminal(cell: Cell, signs: int) -> Text:
    """A cell whose marks take as much room as the most in its column, so that numbers stand in line."""
    return Text(f"{cell.text}{cell.signs:<{signs}}", _STYLES[cell.mark] + " bold" * cell.is_best)


def comparison_tables(result: ComparisonResult) -> list[dict[str, Any]]:
    """The same as titles, columns and rows, for the page.

    Args:
        result: A comparison, finished or not.
    """
    asked = result.config.measures
    unit = result.unit
    measure = result.about.get("measure", "not judged yet").replace("_", " ") + _in_per_cent(result)
    lower = result.lower_is_better(Measure.FOUND_MEAN)
    better = f"{'smaller' if lower else 'larger'} is better"
    parts = (
        (f"What is handed over: {measure}; {better}", tuple(m for m in asked if m.is_quality)),
        (f"Forgetting err₂ − err₁, {unit.name}", tuple(m for m in asked if m in _FORGETTING)),
        (
            "Rank by shared weights, and cost" if Measure.TAU in asked else "Cost",
            tuple(m for m in asked if m in {Measure.TAU, Measure.TAU_TOP, Measure.SECONDS}),
        ),
    )
    return [_table(result, title, measures) for title, measures in parts]


def _table(result: ComparisonResult, title: str, measures: Sequence[Measure]) -> dict[str, Any]:
    columns = [_column(result, measure) for measure in measures]
    rows = [
        {"rank": rank, "row": str(row), "colour": _colour(row), "cells": [cells[row] for _, cells in columns]}
        for rank, row in enumerate(result.ranked, start=1)
    ]
    return {"title": title, "columns": [name for name, _ in columns], "rows": rows}


def _column(result: ComparisonResult, measure: Measure) -> tuple[str, dict[Row, Cell]]:
    """Its head, and a cell for every row, all in one unit and with as many digits."""
    intervals = {row: result.interval(row, measure) for row in result.ranked}
    scale, name = _scale(result, measure, intervals.values())
    scaled = {row: _scaled(interval, scale) for row, interval in intervals.items()}
    decimals, best = _decimals(list(scaled.values())), result.best(measure)
    cells = {}
    for row, interval in scaled.items():
        test = result.test(row, measure)
        mark = None if test is None else test["mark"]
        cells[row] = Cell(with_interval(interval, decimals), mark, row in best)
    return name, cells


def _scale(result: ComparisonResult, measure: Measure, intervals: Any) -> tuple[float, str]:
    if measure in _FORGETTING:
        return result.unit.scale, _TITLES[measure]
    if measure is Measure.SECONDS:
        most = max((interval["mean"] for interval in intervals if interval), default=0.0)
        divisor, name = (1.0, "s") if most < 100 else (60.0, "min") if most < 6000 else (3600.0, "h")
        return 1 / divisor, f"{_TITLES[measure]}, {name}"
    return _quality_scale(result) if measure in _QUALITY else 1.0, _TITLES[measure]


def _quality_scale(result: ComparisonResult) -> float:
    """Shares of wrong images are shown in per cent; everything else is as it is recorded."""
    return result.unit.scale if result.lower_is_better(Measure.FOUND_MEAN) else 1.0


def _in_per_cent(result: ComparisonResult) -> str:
    return " in %" if _quality_scale(result) != 1.0 else ""


def _scaled(interval: Mapping[str, Any] | None, scale: float) -> dict[str, Any] | None:
    if interval is None:
        return None
    return {name: None if value is None else scale * value for name, value in interval.items()}


def _decimals(intervals: Sequence[Mapping[str, Any] | None]) -> int:
    """As many that half a usual interval has two digits, but no more than give a usual mean three; at least one.

    Three are enough where half a usual interval is a thousandth or more: four columns of more do not fit a terminal.
    """
    present = [interval for interval in intervals if interval is not None]
    halves = [interval["high"] - interval["mean"] for interval in present if interval["high"] is not None]
    means = [abs(interval["mean"]) for interval in present]
    wanted = [
        digits - 1 - math.floor(math.log10(statistics.median(some)))
        for digits, values in ((2, halves), (3, means))
        if (some := [value for value in values if value > 0])
    ]
    decimals = max(1, min(wanted, default=2))
    return min(decimals, _ENOUGH) if halves and statistics.median(halves) >= 10**-_ENOUGH else decimals


def comparison_notes(result: ComparisonResult) -> list[str]:
    """How to read the tables, and what is missing.

    Args:
        result: A comparison, finished or not.
    """
    config = result.config
    notes = []
    if result.missing:
        names = list(result.missing)
        more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
        notes.append(f"Missing: {', '.join(names[:_MANY])}{more} (of {result.num_units}).")
        notes.append("Go on with `forgetless resume`.")
    if lacking := _lacking(result):
        notes.append("Left out are seeds that gave no number, as where all diverged or a file was damaged:")
        notes += [f"  {text}," for text in lacking[:-1]] + [f"  {lacking[-1]}."]
    if any(result.interval(row, Measure.FOUND_MEAN) for row in result.ranked):
        # Of fewer samples a search selects all.
        best = min(config.evaluation.top, config.search.selection.final_samples)
        notes.append(f"Ranked by the mean of the {best} best of each search. {BEST}: best of its column.")
    notes += _legend(result)
    if config.search.run.seeds > 1:
        notes.append(f"±: half the 95 % interval over {config.search.run.seeds} seeds, for one number, not corrected.")
    else:
        notes.append("One seed gives no interval.")
    begun = [
        name for name, search in result.searches.items() if STRATEGIES[name].trains_shared_weights and search.epochs()
    ]
    epochs = {name: epochs_text(result.forgetting_epochs(name)) for name in begun}
    if len(set(epochs.values())) == 1:
        notes.append(f"Forgetting: mean over {epochs[begun[0]]}. Negative is progress.")
    elif epochs:
        notes.append("Forgetting: mean over")
        notes += [f"  {text} of {name}{'.' if name == begun[-1] else ','}" for name, text in epochs.items()]
        notes.append("Negative is progress.")
    if config.evaluation.truth is not None:
        notes.append("Regret: to the best of the space. Surpasses: chance that a random one is worse.")
        searches_of = map(config.search_of, config.strategy_names)
        differences = dict.fromkeys(task_difference(config.evaluation.truth, search) for search in searches_of)
        notes += filter(None, differences)
    else:
        notes.append("Surpasses: chance that an architecture drawn uniformly is worse.")
    if Measure.TAU in config.measures:
        notes.append("τ: Kendall's, of rewards on shared weights with the truth; top: best 20 %.")
    notes.append("Time: of one search, beside others; differences in it are not tested.")
    return notes


def _lacking(result: ComparisonResult) -> list[str]:
    """Rows of which a number is a mean over fewer seeds than were finished, and over how many."""
    found = []
    for row in result.ranked:
        unfinished = sum(name.startswith(f"{row.strategy}/") for name in result.missing)
        wanted = result.config.search.run.seeds - unfinished
        is_judged = any(record["strategy"] == row.strategy for record in result.evaluations)
        measures = [Measure.FOUND_MEAN] * is_judged + [Measure.FORGETTING] * row.is_search
        measures += [Measure.TAU] * (is_judged and row.is_search and Measure.TAU in result.config.measures)
        for measure in measures:
            if (number := len(result.values(row, measure))) < wanted:
                name = "τ" if measure is Measure.TAU else "quality" if measure.is_quality else "forgetting"
                found.append(f"{name} of {row}: {number} of {wanted} seeds")
    return found


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
        of_strategy = [r.protection for r in references if r.is_search]
        against = f"{of_strategy[0]} of the same strategy" if of_strategy else ""
        if drawn := next((str(reference) for reference in references if not reference.is_search), None):
            against = f"{against} (which itself: {drawn})" if against else drawn
    legend = [
        f"{BETTER} better, {WORSE} worse than {against}",
        "(sign flips over seeds, Holm over each column, 5 %).",
    ]
    try:
        config.expect_seeds()
    except InputError:  # they were allowed
        seeds = config.search.run.seeds
        legend.append(f"With {seeds} seed{'s' * (seeds > 1)} no difference can be significant.")
    return legend


# ---- the picture -------------------------------------------------------------------------------------------------


def forgetting_against_quality(result: ComparisonResult) -> Figure:
    """Mean forgetting against the mean quality of what is handed over: a point per row, with 95 % intervals.

    Better is up and to the left. A strategy that trains no shared weights, and so forgets nothing, is a line.

    Args:
        result: A comparison, finished or not.

    Returns:
        The figure: one panel.

    Raises:
        InputError: If no row has both.
    """
    unit = result.unit
    points = {
        row: (
            _estimate(result, row, Measure.FORGETTING, unit.scale),
            _estimate(result, row, Measure.FOUND_MEAN, _quality_scale(result)),
        )
        for row in result.ranked
    }
    if not any(x and y for x, y in points.values()):
        raise InputError("Expected a finished search to draw, but got none. Finish one first.")
    figure, (ax,) = grid([""], 1, 4.2, "x")
    drawn: list[Row] = []
    limits = [_limits([point[i] for point in points.values() if point[i]]) for i in (0, 1)]
    for row, (x, y) in points.items():
        if y is None:
            continue
        shade = _colour(row)
        if x is None:
            if not row.is_search:
                ax.axhline(y.mean, color=QUIET, linewidth=1.2, linestyle=(0, (4, 2)), zorder=2, gid=str(row))
                ax.annotate(
                    row.strategy, (1, y.mean), xycoords=("axes fraction", "data"), ha="right", va="bottom", **FONT
                )
            continue
        draw_interval(ax, x, y.mean, limits[0], vertical=False, shade=shade)
        draw_interval(ax, y, x.mean, limits[1], vertical=True, shade=shade)
        ax.plot(x.mean, y.mean, marker=_marker(result, row), color=shade, markersize=8, zorder=5, gid=str(row))
        drawn.append(row)
    ax.axvline(0, color=INK, linewidth=0.9, zorder=1.5)
    ax.set_xlim(*limits[0])
    lower = result.lower_is_better(Measure.FOUND_MEAN)
    ax.set_ylim(*(reversed(limits[1]) if lower else limits[1]))
    ax.set_xlabel(f"forgetting err₂ − err₁, {unit.name}", fontsize=10, **FONT)
    ax.set_ylabel(f"{_in_short(result)} of what is handed over{_in_per_cent(result)}", fontsize=10, **FONT)
    shades = {row.protection: _colour(row) for row in drawn}
    colours = [Patch(color=shade, label=label(name)) for name, shade in shades.items()]
    shapes = [
        Line2D([], [], color=QUIET, marker=_marker(result, row), linestyle="", markersize=7, label=row.strategy)
        for row in {row.strategy: row for row in drawn}.values()
    ]
    place_legends(figure, colours, shapes)
    title_figure(figure, headline_sentences(result)[0].rstrip("."))
    return figure


def _estimate(result: ComparisonResult, row: Row, measure: Measure, scale: float = 1.0) -> Interval | None:
    interval = _scaled(result.interval(row, measure), scale)
    return None if interval is None else Interval(**interval)


def _limits(estimates: Sequence[Interval | None]) -> tuple[float, float]:
    """An axis that holds every interval, with some room."""
    ends = [end for e in estimates if e is not None for end in (e.mean, e.low, e.high) if end is not None]
    low, high = min(ends), max(ends)
    room = 0.08 * (high - low) or 0.5
    return low - room, high + room


def _marker(result: ComparisonResult, row: Row) -> str:
    return _MARKERS[result.config.strategy_names.index(row.strategy) % len(_MARKERS)]


def _colour(row: Row) -> str:
    return colour(row.protection) if row.is_search else QUIET


def _in_short(result: ComparisonResult) -> str:
    """What quality is, without its unit."""
    return str(result.about.get("measure", "quality")).replace("_", " ").partition(",")[0]


# ---- the page ----------------------------------------------------------------------------------------------------


def headline_sentences(result: ComparisonResult) -> list[str]:
    """What was found, in sentences that say no more than the tests allow; the first says the most.

    Args:
        result: A comparison, finished or not.

    Returns:
        At least one sentence.
    """
    first = result.ranked[0]
    interval = result.interval(first, Measure.FOUND_MEAN)
    if interval is None:
        done = result.num_units - len(result.missing)
        return [f"Nothing has been judged yet: {done} of {result.num_units} searches are finished."]
    interval = _scaled(interval, _quality_scale(result))
    number = with_interval(interval, _decimals([interval])) + _in_per_cent(result).removeprefix(" in")
    told = [f"{_named(first)} hands over the best architectures: {_in_short(result)} {number}."]
    test = result.test(first, Measure.FOUND_MEAN)
    if test is not None:
        reference = _named(Row(*test["reference"]))
        verdict = {"better": "is", "worse": "is", None: "is not"}[test["mark"]]
        p = probability(test["adjusted_p"])
        told.append(f"Its difference from {reference} {verdict} significant (p {p if '<' in p else f'= {p}'}).")
    if equals := len(result.best(Measure.FOUND_MEAN) - {first}):
        told.append(f"{equals} other row{'s hand' if equals > 1 else ' hands'} over equally good ones.")
    for measure, words in (
        (Measure.FOUND_MEAN, {"better": "Significantly better architectures", "worse": "Significantly worse ones"}),
        (Measure.FORGETTING, {"better": "Significantly less forgetting", "worse": "Significantly more forgetting"}),
    ):
        tests = [test for test in result.tests if test["measure"] == measure]
        found: dict[tuple[str, str], list[str]] = {}
        for test in tests:
            if test["mark"]:
                found.setdefault((test["mark"], _in_general(result, test)), []).append(_named(Row(*test["row"])))
        told += [f"{words[mark]} than {against}: {', '.join(rows)}." for (mark, against), rows in found.items()]
        if tests and not found:
            told.append(f"No difference in {'quality' if measure.is_quality else 'forgetting'} is significant.")
    return told


def _named(row: Row) -> str:
    """A row in a sentence."""
    return f"{row.strategy} with {label(row.protection)}" if row.is_search else row.strategy


def _in_general(result: ComparisonResult, test: Mapping[str, Any]) -> str:
    """What a row was tested against, in the same words for all strategies."""
    reference = Row(*test["reference"])
    is_own = reference.strategy == test["row"][0] and result.config.tests.reference not in result.config.strategy_names
    return f"the same strategy with {label(reference.protection)}" if is_own else _named(reference)


def comparison_section(result: ComparisonResult) -> dict[str, Any]:
    """What the template shows of a comparison.

    Args:
        result: A comparison, finished or not.

    Returns:
        Values for section.html, and for the parts of template.html that every run has.
    """
    config, said = result.config, headline_sentences(result)
    search, schedule, seeds = config.search, config.search.schedule, config.search.run.seeds
    seconds = [value for row in result.ranked for value in result.values(row, Measure.SECONDS).values()]
    done = result.num_units - len(result.missing)
    return {
        "settings": ", ".join(
            [
                search.space.kind.label,
                search.data.name,
                f"strategies {', '.join(config.strategy_names)}",
                (
                    f"{schedule.epochs} epochs of {schedule.models_per_epoch} models × {schedule.batches_per_model} "
                    "batches"
                ),
                f"{search.optimizer.name} at {search.optimizer.learning_rate:g}",
                f"{seeds} seed{'' if seeds == 1 else 's'}",
            ]
        ),
        "headline": said[0],
        "details": " ".join(said[1:]),
        "findings": [],
        "unfinished": f"{done} of {result.num_units} searches are finished" if result.missing else "",
        "missing": list(result.missing.items()),
        "figures": _figures(result),
        "tables": comparison_tables(result),
        "notes": comparison_notes(result),
        "tests": _tests(result),
        "time": _time(math.fsum(seconds)) if seconds else "",
    }


def _time(seconds: float) -> str:
    return f"The searches took {duration(seconds)} of one process in all, without training anything from scratch."


def _tests(result: ComparisonResult) -> list[list[str]]:
    """Every test: of what, which row, against which, the difference in the unit of its column, and both p."""
    rows = []
    for test in result.tests:
        measure = Measure(test["measure"])
        scale, _ = _scale(result, measure, [])
        difference = _scaled(test["difference"], scale)
        names = [str(Row(*test[side])) for side in ("row", "reference")]
        p_values = [probability(test[name]) for name in ("p", "adjusted_p")]
        shown = with_interval(difference, _decimals([difference]))
        rows.append([measure.replace("_", " "), *names, shown, *p_values, test["mark"] or ""])
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
    return [{"source": data_uri(figure), "caption": caption}]
