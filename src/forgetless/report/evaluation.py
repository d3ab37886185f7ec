"""The tables of `forgetless evaluate`: how searches compare with random architectures."""

from collections.abc import Sequence

from rich import table as rich

from forgetless.evaluation.baselines import summarise_baselines
from forgetless.evaluation.records import Beats, Evaluation, JudgedBy, JudgedSummary
from forgetless.report.baselines import baseline_notes, baselines_table, beats_table
from forgetless.report.ceiling import ceiling_notes, ceiling_rows
from forgetless.report.formats import NOTHING, duration, plus_minus, probability
from forgetless.report.table import Row, Table, in_terminal

_ALONE = {"best": "found_best", "mean": "found_mean", "random": "random_mean", "better by": "gain"}
_RANKS = {"surpasses": "probability_of_surpassing_random", "regret": "regret"}
_RANKS |= {"τ": "tau", "τ unique": "tau_unique", "τ top": "tau_top"}


def evaluation_table(found: Evaluation) -> rich.Table:
    """What searches select against random architectures, over seeds, and how well the shared weights rank."""
    summary = found.summary
    means = [each.mean for entry in summary for each in (entry.found_mean, entry.random_mean) if each]
    decimals = 3 if max(map(abs, means), default=0.0) < 10 else 2
    digits = dict.fromkeys((*_ALONE.values(), "regret"), decimals)

    def table(
        title: str, columns: dict[str, str], last: str, cells: Sequence[str], about: JudgedBy | None = None
    ) -> Table:
        rows = [[plus_minus(getattr(entry, key), digits.get(key, 2)) for key in columns.values()] for entry in summary]
        names = [_name(entry, summary) for entry in summary]
        lines = [Row(name, [*row, cell]) for name, row, cell in zip(names, rows, cells, strict=True)]
        lines += ceiling_rows(about, (*columns, last))
        return Table(title, (*columns, last), lines, first="search")

    times = [duration(entry.seconds.mean) if entry.seconds else NOTHING for entry in summary]
    tables = [
        table(f"What searches select: {found.about.measure}", _ALONE, "p", [probability(e.p) for e in summary]),
        table("Against the whole space, and the rank by shared weights", _RANKS, "time", times, found.about),
    ]
    summaries = summarise_baselines(found.baselines, lower_is_better=found.about.lower_is_better)
    more = (beats_table(found.beats, lambda each: _name(each, summary), decimals), baselines_table(summaries, decimals))
    return in_terminal([*tables, *filter(None, more)], evaluation_notes(found))


def evaluation_notes(found: Evaluation) -> list[str]:
    """How to read the tables."""
    # A search that kept fewer architectures than were asked for selects all of them.
    fewest, most = (function(len(search.found) for search in found.searches) for function in (min, max))
    best = f"{fewest} to {most}" if fewest < most else str(most)
    notes = [f"{found.about.description} Each search selects its {best} best; as many are drawn uniformly."]
    tests = {entry.test for entry in found.summary}
    if "seeds" in tests:
        notes.append("±: half the 95 % interval over seeds. p: sign-flip test over seeds, one-sided.")
    if "architectures" in tests:
        notes.append("One seed: p from permuting found and random architectures; no intervals.")
    notes.append("Surpasses: chance that an architecture drawn uniformly is worse. Better by: mean against random.")
    if any(entry.tau for entry in found.summary):
        notes.append("τ: Kendall's, of rewards on shared weights with the truth; top: among the best 20 %.")
        notes += ceiling_notes(found.about)
    notes += baseline_notes(found.beats, found.undefined)
    if found.failures:
        notes.append(f"{len(found.failures)} trainings failed and are left out.")
    return notes


def _name(entry: JudgedSummary | Beats, among: Sequence[JudgedSummary]) -> str:
    name = f"{entry.strategy}, {entry.protection}"
    return f"{entry.run}: {name}" if len({each.run for each in among}) > 1 else name
