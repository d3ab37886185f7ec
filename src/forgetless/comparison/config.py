"""What a comparison is asked to do, which searches that makes, and which of its differences are tested."""

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, NamedTuple

from forgetless.configuration import FITTING
from forgetless.errors import InputError, expect_one_of
from forgetless.evaluation.run import EvaluationConfig
from forgetless.evaluation.significance import expect_enough_seeds
from forgetless.search import SearchConfig
from forgetless.strategies import STRATEGIES

RANDOM = "random"
"""The strategy that searches nothing: it trains no shared weights, so there is nothing in it to protect."""

_FREE = "none"


class Row(NamedTuple):
    """What is compared: a strategy under a protection."""

    strategy: str
    protection: str

    def __str__(self) -> str:
        return self.strategy if self.strategy == RANDOM else f"{self.strategy}, {self.protection}"


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
        """Whether it says how good the architectures are that a search hands over."""
        return self in {Measure.FOUND_MEAN, Measure.FOUND_BEST, Measure.REGRET, Measure.SURPASSES}

    @property
    def is_tested(self) -> bool:
        """Whether differences in it are tested; seconds are not, since searches that run side by side share them."""
        return self is not Measure.SECONDS


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig(EvaluationConfig, SearchConfig):  # so that the search's options come first
    """What `forgetless compare` is asked to do: the options of a search, those of an evaluation, and these.

    Attributes:
        strategy: What proposes architectures, one or more of uniform, enas, evolution, nao, random, and on nas201
            gdas.
        protection: Arms of each, as for a search; `random`, which trains no shared weights, has none of them.
        seeds: How many seeds.
        final_batches: As for a search; 1 by default where there is a truth, since nothing here looks at its result.
        reference: What each row is tested against: a protection (that of the same strategy; its unprotected arm, in
            turn, against `random` if that is there), or a strategy (its unprotected arm, for all rows). By default
            `none`, or the first protection where that is not asked for.
        allow_few_seeds: Go on with fewer seeds than any difference could be significant with.
        trainings: Folder of trainings from scratch; FORGETLESS_TRAININGS or runs/trainings by default.
    """

    strategy: tuple[str, ...] = ("uniform", "enas")  # type: ignore[assignment]
    protection: tuple[str, ...] = ("none", "l2", "wpl")
    seeds: int = 10
    final_batches: Annotated[int, FITTING] = None  # type: ignore[assignment]
    reference: str | None = None
    allow_few_seeds: bool = False
    trainings: str | None = None

    def __post_init__(self) -> None:
        for option in ("strategy", "protection"):
            names = tuple(getattr(self, option))
            object.__setattr__(self, option, names)
            if not names or len(set(names)) < len(names):
                raise InputError(f"Expected one or more different names for {option}, but got {', '.join(names)}.")
        for name in self.strategy:
            expect_one_of("strategy", name, STRATEGIES)
        self._expect_arms(self.protection)
        if self.final_batches is None:
            object.__setattr__(self, "final_batches", int(self.truth is not None))
        # What no option was given for depends on the space; a search refuses what does not fit it or the strategy, and
        # has tuples for the lists of a TOML file.
        for field in dataclasses.fields(SearchConfig):
            if field.name != "strategy":
                for search in (self.search(strategy) for strategy in self.strategy):
                    if getattr(self, field.name) is None or isinstance(getattr(self, field.name), list):
                        object.__setattr__(self, field.name, getattr(search, field.name))
        EvaluationConfig.__post_init__(self)
        if not self.final_samples:
            raise InputError("Expected final_samples above 0, from which a search hands something over, but got 0.")
        if self.reference is not None:
            expect_one_of("reference", self.reference, [*self.protection, *self.strategy])

    def search(self, strategy: str) -> SearchConfig:
        """The searches of one strategy, over all seeds and protections.

        Args:
            strategy: One of those asked for.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(SearchConfig)}
        protection = (_FREE,) if strategy == RANDOM else self.protection
        return SearchConfig(**{**values, "strategy": strategy, "protection": protection})

    @property
    def evaluation(self) -> EvaluationConfig:
        """How what the searches hand over is judged."""
        return EvaluationConfig(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(EvaluationConfig)}
        )

    @property
    def defaults(self) -> dict[str, Any]:
        """Every option's value in a command that names none of them but `space` and `optimizer`."""
        fitting = dataclasses.asdict(ComparisonConfig(space=self.space, optimizer=self.optimizer))
        return {**fitting, "space": SearchConfig.space, "optimizer": SearchConfig.optimizer}

    @property
    def rows(self) -> list[Row]:
        """Everything that is compared, in the order of the options."""
        return [Row(strategy, name) for strategy in self.strategy for name in self.search(strategy).protection]

    @property
    def measures(self) -> list[Measure]:
        """What will be measured."""
        left_out = set() if self.interference_every else {Measure.MULTI_MODEL}
        if self.truth is None:
            left_out |= {Measure.REGRET}
        if self.truth is None or not self.estimates:
            left_out |= {Measure.TAU, Measure.TAU_TOP}
        return [measure for measure in Measure if measure not in left_out]

    def pairs(self, measure: Measure) -> list[tuple[Row, Row]]:
        """The differences that are tested: a row, and what it is tested against.

        Args:
            measure: Of this.
        """
        if not measure.is_tested:
            return []
        rows = [row for row in self.rows if measure.is_quality or row.strategy != RANDOM]
        if self.reference in self.strategy:
            reference = Row(self.reference, self._reference_protection(self.reference))
            return [(row, reference) for row in rows if row != reference] if reference in rows else []
        found = []
        for row in rows:
            protection = self._reference_protection(row.strategy)
            reference = Row(row.strategy, protection) if row.protection != protection else Row(RANDOM, _FREE)
            if reference != row and reference in rows:
                found.append((row, reference))
        return found

    def _reference_protection(self, strategy: str) -> str:
        present = self.search(strategy).protection
        return next((name for name in (self.reference, _FREE) if name in present), present[0])

    def expect_seeds(self) -> None:
        """Refuse fewer seeds than any difference could be significant with.

        Raises:
            InputError: If there are too few.
        """
        if number := max(len(self.pairs(measure)) for measure in self.measures):
            try:
                expect_enough_seeds(self.seeds, num_comparisons=number)
            except InputError as error:
                raise InputError(f"{error} Or pass --allow-few-seeds: then no difference can be marked.") from error
