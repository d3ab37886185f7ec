"""The result of a comparison: one row per strategy and protection, ranked, and the tests between rows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from forgetless.comparison.config import ComparisonConfig, Measure, Row
from forgetless.comparison.records import ComparisonSummary, DifferenceTest, RowSummary
from forgetless.comparison.run import is_finished, read_evaluation, read_failures, read_unit, units
from forgetless.evaluation.baselines import beats_of, rows_of, summarise_baselines
from forgetless.evaluation.records import (
    BaselineSummary,
    Beats,
    JudgedBaseline,
    JudgedBy,
    JudgedSearch,
    UndefinedRule,
    load_evaluation,
)
from forgetless.evaluation.significance import compare_pairs
from forgetless.forgetting import Interval, interval_of_known
from forgetless.runs import CONFIG, EVALUATION, RunFolder
from forgetless.search.records import SearchRecord
from forgetless.search.result import SearchResult
from forgetless.strategies import STRATEGIES
from forgetless.tasks import Unit

_LARGER_IS_BETTER = (Measure.SURPASSES, Measure.TAU, Measure.TAU_TOP)


@dataclass(frozen=True)
class ComparisonResult:
    """A comparison: what was asked, and its records as far as it got.

    Args:
        config: What was asked.
        searches: Strategy → the records of its searches, over seeds and protections.
        evaluations: Of `evaluate`, one per search that was judged.
        about: What they were judged by; None if none was.
        missing: Name of each strategy and seed that is not finished → why, or nothing.
        baselines: What rules without a search select, of each unit that was judged by a truth.
        undefined: Rules that have no score in this space, and why.
    """

    config: ComparisonConfig
    searches: Mapping[str, SearchResult]
    evaluations: Sequence[JudgedSearch]
    about: JudgedBy | None
    missing: Mapping[str, str]
    baselines: Sequence[JudgedBaseline] = ()
    undefined: Sequence[UndefinedRule] = ()

    @property
    def unit(self) -> Unit:
        """Of errors, and so of forgetting."""
        return self.searches[self.config.strategy_names[0]].unit

    @property
    def num_units(self) -> int:
        """How many strategies times seeds were asked for."""
        return len(self.config.strategies) * self.config.search.run.seeds

    @property
    def progress(self) -> tuple[int, int]:
        """How many of these are finished, and how many were asked for."""
        return self.num_units - len(self.missing), self.num_units

    def lower_is_better(self, measure: Measure) -> bool:
        """Whether smaller values of a measure are better.

        Args:
            measure: Which.
        """
        if measure in {Measure.FOUND_MEAN, Measure.FOUND_BEST}:
            return self.about is None or self.about.lower_is_better
        return measure not in _LARGER_IS_BETTER

    def forgetting_epochs(self, strategy: str) -> range:
        """The epochs over which the forgetting of a strategy's rows is averaged, from 0.

        Those in which its unprotected searches forget, the same for all of its protections; where one strategy is the
        reference of all rows, those in which its searches do, lest different epochs be compared. See
        `SearchResult.forgetting_epochs`.

        Args:
            strategy: Which.
        """
        reference = self.config.tests.reference
        if reference is None or reference not in self.config.strategy_names:
            return self.searches[strategy].forgetting_epochs
        is_shared = all(STRATEGIES[name].trains_shared_weights for name in (reference, strategy))
        return self.searches[reference if is_shared else strategy].forgetting_epochs

    def values(self, row: Row, measure: Measure) -> dict[int, float]:
        """Seed → what was measured of a row; of forgetting the mean over `forgetting_epochs`.

        Args:
            row: Of which.
            measure: What.
        """
        if measure.is_forgetting:
            return self.searches[row.strategy].by_seed(row.protection, measure, self.forgetting_epochs(row.strategy))
        mine = [record for record in self.evaluations if (record.strategy, record.protection) == row]
        found = {record.seed: record.number(measure) for record in sorted(mine, key=lambda record: record.seed)}
        return {seed: value for seed, value in found.items() if value is not None and math.isfinite(value)}

    def interval(self, row: Row, measure: Measure) -> Interval | None:
        """The mean over seeds, with its 95 % interval; None where there is no value.

        Args:
            row: Of which.
            measure: What.
        """
        return interval_of_known(self.values(row, measure).values())

    @cached_property
    def ranked(self) -> list[Row]:
        """The rows by the mean quality of what they selected, the best first; those without one come last."""

        def quality(row: Row) -> float:
            interval = self.interval(row, Measure.FOUND_MEAN)
            if interval is None:
                return -math.inf
            return -interval.mean if self.lower_is_better(Measure.FOUND_MEAN) else interval.mean

        return sorted(self.config.rows, key=quality, reverse=True)

    def best(self, measure: Measure) -> set[Row]:
        """The row with the best mean, or several that share it; none where fewer than two have one, or none is tested.

        Args:
            measure: By which.
        """
        sign = -1.0 if self.lower_is_better(measure) else 1.0
        means = {row: interval.mean for row in self.ranked if (interval := self.interval(row, measure)) is not None}
        best = max((sign * mean for mean in means.values()), default=0.0)
        is_told = len(means) > 1 and measure.is_tested
        return {row for row, mean in means.items() if sign * mean == best} if is_told else set()

    @property
    def lacking(self) -> list[tuple[str, Row, int, int]]:
        """Rows of which a number is a mean over fewer seeds than were finished.

        Returns:
            Which number (`quality`, `forgetting`, `τ`), of which row, seeds that gave it, and seeds that were finished.
        """
        found = []
        for row in self.ranked:
            unfinished = sum(name.startswith(f"{row.strategy}/") for name in self.missing)
            wanted = self.config.search.run.seeds - unfinished
            is_judged = any(record.strategy == row.strategy for record in self.evaluations)
            measures = {
                "quality": (Measure.FOUND_MEAN, is_judged),
                "forgetting": (Measure.FORGETTING, row.is_search),
                "τ": (Measure.TAU, is_judged and row.is_search and Measure.TAU in self.config.measures),
            }
            for name, (measure, is_expected) in measures.items():
                if is_expected and (count := len(self.values(row, measure))) < wanted:
                    found.append((name, row, count, wanted))
        return found

    @cached_property
    def tests(self) -> list[DifferenceTest]:
        """Every difference that is tested.

        Each measure is corrected by itself, over all of its comparisons that share a seed.
        """
        found = []
        for measure in self.config.measures:
            pairs = {}
            for row, reference in self.config.pairs(measure):
                mine, others = self.values(row, measure), self.values(reference, measure)
                if differences := [mine[seed] - others[seed] for seed in mine if seed in others]:
                    pairs[f"{row}", f"{reference}"] = (row, reference, differences)
            tested = compare_pairs({names: differences for names, (_, _, differences) in pairs.items()})
            for test, (row, reference, differences) in zip(tested, pairs.values(), strict=True):
                is_better = (test.difference.mean < 0) == self.lower_is_better(measure)
                found.append(
                    DifferenceTest(
                        measure=measure,
                        row=row,
                        reference=reference,
                        num_seeds=len(differences),
                        difference=test.difference,
                        p=test.p,
                        adjusted_p=test.adjusted_p,
                        mark=("better" if is_better else "worse") if test.significant else None,
                    )
                )
        return found

    def test(self, row: Row, measure: Measure) -> DifferenceTest | None:
        """What a row was tested against in a measure, and how it came out; None where it was not.

        Args:
            row: Which.
            measure: Of which.
        """
        return next((test for test in self.tests if (test.row, test.measure) == (row, measure)), None)

    @cached_property
    def beats(self) -> tuple[Beats, ...]:
        """Whether each row selects better than random, than the number of parameters and than the best proxy."""
        groups = rows_of(self.evaluations, by_run=False)
        lower = self.lower_is_better(Measure.FOUND_MEAN)
        ranked = {("", *row): groups["", *row] for row in self.ranked if ("", *row) in groups}
        return beats_of(ranked, self.baselines, lower_is_better=lower)

    @cached_property
    def baseline_summaries(self) -> tuple[BaselineSummary, ...]:
        """Rules without a search over seeds, the best first."""
        return summarise_baselines(self.baselines, lower_is_better=self.lower_is_better(Measure.FOUND_MEAN))

    def summary(self) -> ComparisonSummary:
        """Everything that the tables show, the rows ranked."""
        rows = [self._summary_of(rank, row) for rank, row in enumerate(self.ranked, start=1)]
        return ComparisonSummary(
            about=self.about,
            rows=rows,
            tests=self.tests,
            beats=self.beats,
            baselines=self.baseline_summaries,
            undefined=tuple(self.undefined),
            missing=dict(self.missing),
        )

    def _summary_of(self, rank: int, row: Row) -> RowSummary:
        epochs = self.forgetting_epochs(row.strategy)
        values = {measure: self.values(row, measure) for measure in self.config.measures}
        return RowSummary(
            rank=rank,
            strategy=row.strategy,
            protection=row.protection,
            forgetting_epochs=(epochs.start, epochs.stop),
            intervals={measure: interval_of_known(found.values()) for measure, found in values.items()},
            seeds={m: {str(seed): value for seed, value in found.items()} for m, found in values.items()},
        )


def load_comparison(folder: RunFolder, config: ComparisonConfig) -> ComparisonResult:
    """What a comparison's folder holds, as far as it got.

    Args:
        folder: The folder.
        config: Of the folder.

    Returns:
        The result.

    Raises:
        InputError: If a record lacks what every record has.
    """
    records: dict[str, list[SearchRecord]] = {strategy: [] for strategy in config.strategy_names}
    evaluations: list[JudgedSearch] = []
    baselines: list[JudgedBaseline] = []
    undefined: dict[UndefinedRule, None] = {}
    about: JudgedBy | None = None
    reasons = read_failures(folder, config)
    missing: dict[str, str] = {}
    for unit in units(folder, config):
        if not (unit.path / CONFIG).is_file():  # not begun, or killed in the first moment
            missing[unit.key] = reasons.get(unit.key, "")
            continue
        records[unit.config.strategy_name] += read_unit(unit)
        if not is_finished(unit):
            missing[unit.key] = reasons.get(unit.key, "")
        elif unit.evaluation is not None and (judged := read_evaluation(unit)):
            evaluations += judged.searches
            baselines += judged.baselines
            undefined |= dict.fromkeys(judged.undefined)
            about = judged.about
    path = folder.path / EVALUATION
    if config.evaluation.truth is None and path.is_file():
        judged = load_evaluation(path, folder.header.digest)
        evaluations, about = judged.searches, judged.about
    searches = {strategy: SearchResult(config.search_of(strategy), found) for strategy, found in records.items()}
    return ComparisonResult(config, searches, evaluations, about, missing, baselines, tuple(undefined))
