"""What the page shows of a comparison."""

import math
from typing import Any

from forgetless.comparison import Measure, Row
from forgetless.comparison.result import ComparisonResult
from forgetless.errors import InputError
from forgetless.report.canvas import picture
from forgetless.report.comparison.figures import forgetting_against_quality
from forgetless.report.comparison.findings import headline_sentences
from forgetless.report.comparison.tables import comparison_notes, comparison_tables, decimals, scale_of
from forgetless.report.formats import counted, duration, plus_minus, probability


def comparison_section(result: ComparisonResult) -> dict[str, Any]:
    """What section.html shows of a comparison, finished or not."""
    seconds = [value for row in result.ranked for value in result.values(row, Measure.SECONDS).values()]
    took = f"The searches took {duration(math.fsum(seconds))} of one process in all"
    return {
        "settings": _settings(result),
        "sentences": headline_sentences(result),
        "progress": (result.num_units - len(result.missing), result.num_units, "searches"),
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
        f"{search.optimizer.name} at {search.optimizer.learning_rate:g}, {counted(search.run.seeds, 'seed')}"
    )


def _tests(result: ComparisonResult) -> list[list[str]]:
    """Every test: of what, which row, against which, the difference in the unit of its column, and both p."""
    rows = []
    for test in result.tests:
        measure, difference = Measure(test["measure"]), test["difference"]
        scale = scale_of(result, measure)
        names = [str(Row(*test[side])) for side in ("row", "reference")]
        p_values = [probability(test[name]) for name in ("p", "adjusted_p")]
        shown = plus_minus(difference, decimals([difference], scale), scale)
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
    return [picture(figure, caption)]
