"""What a comparison is asked to do, which searches that makes, and which of its differences are tested."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple, Self

from forgetless.configuration import NAME, Configuration, Part, option
from forgetless.errors import InputError, expect_one_of
from forgetless.evaluation.config import EvaluationConfig
from forgetless.parts import Resources, RunConfig, TrainingResources, default_protections
from forgetless.search.config import SearchConfig
from forgetless.strategies import STRATEGIES, StrategyOptions

FREE = "none"
"""The protection that a strategy without shared weights has, and what others are tested against by default."""


class Row(NamedTuple):
    """What is compared: a strategy under a protection."""

    strategy: str
    protection: str

    @property
    def is_search(self) -> bool:
        """Whether shared weights are trained at all, so that there is something to forget."""
        return bool(STRATEGIES[self.strategy].trains_shared_weights)

    def __str__(self) -> str:
        return f"{self.strategy}, {self.protection}" if self.is_search else self.strategy


class Measure(StrEnum):
    """What is measured of a search, by its key in the records."""

    FORGETTING = "forgetting_mean"
    FORGETTING_BEST = "forgetting_best"
    FORGETTING_MAX = "forgetting_max"
    MULTI_MODEL = "multi_model_part"
    FOUND_MEAN = "found_mean"
    FOUND_BEST = "found_best"
    REGRET = "regret"
    SURPASSES = "probability_of_surpassing_random"
    TAU = "tau"
    TAU_TOP = "tau_top"
    SECONDS = "seconds"

    @property
    def is_quality(self) -> bool:
        """Whether it says how good the architectures are that a search selects."""
        return self in {Measure.FOUND_MEAN, Measure.FOUND_BEST, Measure.REGRET, Measure.SURPASSES}

    @property
    def is_forgetting(self) -> bool:
        """Whether it says how much earlier models of a search forget."""
        return self in {Measure.FORGETTING, Measure.FORGETTING_BEST, Measure.FORGETTING_MAX, Measure.MULTI_MODEL}

    @property
    def is_tested(self) -> bool:
        """Whether differences in it are tested; seconds are not, since searches that run side by side share them."""
        return self is not Measure.SECONDS


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Part):
    """What is tested.

    Attributes:
        reference: What each row is tested against: a protection (that of the same strategy; its unprotected arm, in
            turn, against `random` if that is there), or a strategy (its unprotected arm, for all rows). By default
            `none`, or the first protection where that is not asked for.
        allow_few_seeds: Go on with fewer seeds than any difference could be significant with.
    """

    title: ClassVar[str] = "Tests"

    reference: str | None = None
    allow_few_seeds: bool = False


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig(Configuration):
    """What `forgetless compare` is asked to do: searches, how they are judged, and what is tested.

    Attributes:
        strategies: What proposes architectures, one or more.
        search: All searches, but for their strategy; each strategy that trains shared weights has all of its
            protections.
        evaluation: How what they select is judged.
        tests: What is tested.
        resources: Where and how it is made; those of the searches are not looked at.
    """

    shown_contexts: ClassVar[tuple[str, ...]] = SearchConfig.shown_contexts
    unlisted: ClassVar[frozenset[str]] = frozenset({"search.strategy", "search.resources"})

    strategies: tuple[StrategyOptions, ...] = option(None, flag="strategy", basic=True)
    search: SearchConfig = option(None)
    evaluation: EvaluationConfig = EvaluationConfig()
    tests: CompareOptions = CompareOptions()
    resources: TrainingResources = TrainingResources()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strategies is None:
            self._set(strategies=tuple(STRATEGIES[name].Options() for name in ("uniform", "enas")))
        if self.search is None:
            self._set(
                search=SearchConfig(protections=default_protections("none", "l2", "wpl"), run=RunConfig(seeds=10))
            )
        names = self.strategy_names
        if not names or len(set(names)) < len(names):
            raise InputError(f"Expected one or more different strategies, but got {', '.join(names)}.")
        self._set(strategies=tuple(each.fitted() for each in self.strategies))
        for name in names:
            self.search_of(name)  # refuses what does not fit it
        if not self.search.selection.final_samples:
            raise InputError("Expected final_samples above 0, from which a search selects something, but got 0.")
        if self.tests.reference is not None:
            expect_one_of("reference", self.tests.reference, [*self.search.arms, *names])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """As `Configuration.from_dict`, with the defaults that searches have in a comparison.

        Args:
            values: As `Configuration.from_dict`.

        Raises:
            InputError: As `Configuration.from_dict`.
        """
        search, evaluation = values.get("search", {}), values.get("evaluation", {})
        if not isinstance(search, Mapping) or not isinstance(evaluation, Mapping):
            return super().from_dict(values)  # which refuses it
        search = {name: value for name, value in search.items() if name != "strategy"}
        protections = search.setdefault("protections", [{NAME: name} for name in ("none", "l2", "wpl")])
        tables = protections if isinstance(protections, list | tuple) else ()
        names = [str(each[NAME]) for each in tables if isinstance(each, Mapping) and NAME in each]
        if len(set(names)) < len(names):
            raise InputError(f"Expected one or more different protections, but got {', '.join(names)}.")
        defaults: dict[str, Mapping[str, Any]] = {"run": {"seeds": 10}}
        if evaluation.get("truth") is not None:  # then nothing here looks at its result
            defaults["selection"] = {"final_batches": 1}
        for name, usual in defaults.items():
            if isinstance(given := search.get(name, {}), Mapping):
                search[name] = {**usual, **given}
        return super().from_dict({**values, "search": search})

    def to_dict(self) -> dict[str, Any]:
        """As `Part.to_dict`; the strategies are said once."""
        values = super().to_dict()
        search = {name: value for name, value in values["search"].items() if name not in {"strategy", "resources"}}
        return {**values, "search": search}

    @property
    def strategy_names(self) -> tuple[str, ...]:
        """The names of the strategies."""
        return tuple(each.kind.name for each in self.strategies)

    def search_of(self, strategy: str) -> SearchConfig:
        """The searches of one strategy, over all seeds and protections.

        Args:
            strategy: One of those asked for.
        """
        options = self.strategies[self.strategy_names.index(strategy)]
        changes: dict[str, Any] = {"strategy": options}
        if not options.kind.trains_shared_weights:
            changes["protections"] = default_protections(FREE)
        kept = self.resources
        resources = Resources(data_dir=kept.data_dir, checkpoint_every=kept.checkpoint_every, plugin=kept.plugin)
        return dataclasses.replace(self.search, resources=resources, **changes)

    @property
    def rows(self) -> list[Row]:
        """Everything that is compared, in the order of the options."""
        return [Row(strategy, name) for strategy in self.strategy_names for name in self.search_of(strategy).arms]

    @property
    def measures(self) -> list[Measure]:
        """What will be measured."""
        left_out = set() if self.search.interference.every else {Measure.MULTI_MODEL}
        if self.evaluation.truth is None:
            left_out |= {Measure.REGRET}
        if self.evaluation.truth is None or not self.evaluation.estimates:
            left_out |= {Measure.TAU, Measure.TAU_TOP}
        return [measure for measure in Measure if measure not in left_out]

    def pairs(self, measure: Measure) -> list[tuple[Row, Row]]:
        """The differences that are tested: a row, and what it is tested against.

        Args:
            measure: Of this.
        """
        if not measure.is_tested:
            return []
        rows = [row for row in self.rows if measure.is_quality or row.is_search]
        if self.tests.reference in self.strategy_names:
            reference = Row(self.tests.reference, self._reference_protection(self.tests.reference))
            return [(row, reference) for row in rows if row != reference] if reference in rows else []
        drawn = next((row for row in self.rows if not row.is_search), None)
        found = []
        for row in rows:
            protection = self._reference_protection(row.strategy)
            against = Row(row.strategy, protection) if row.protection != protection else drawn
            if against is not None and against != row and against in rows:
                found.append((row, against))
        return found

    def _reference_protection(self, strategy: str) -> str:
        present = self.search_of(strategy).arms
        return next((name for name in (self.tests.reference, FREE) if name in present), present[0])

    def expect_seeds(self) -> None:
        """Refuse fewer seeds than any difference could be significant with.

        Raises:
            InputError: If there are too few.
        """
        from forgetless.evaluation.significance import expect_enough_seeds

        if number := max(len(self.pairs(measure)) for measure in self.measures):
            try:
                expect_enough_seeds(self.search.run.seeds, num_comparisons=number)
            except InputError as error:
                raise InputError(f"{error} Or pass --allow-few-seeds: then no difference can be marked.") from error
