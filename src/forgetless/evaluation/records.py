"""What `forgetless evaluate` finds, as evaluation.json has it: what searches selected, and how good that is."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from forgetless.evaluation.config import EvaluationConfig
from forgetless.evaluation.ranking import RankCorrelation
from forgetless.forgetting import Interval
from forgetless.records import Record
from forgetless.runs import read_sealed
from forgetless.schema import Measured, Number


class Valued(NamedTuple):
    """An architecture, as its space prints it, and what it is worth: NaN where it diverged."""

    architecture: str
    value: Measured


class FailedTraining(NamedTuple):
    """A training from scratch that failed twice: of which architecture, with which seed, and why."""

    architecture: str
    seed: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling(Record):
    """Kendall's τ between two halves of a truth's training seeds: a lower bound for the ceiling of any ranking.

    Attributes:
        num_seeds: (count) Trainings of each architecture.
        half: (count) Seeds of each half.
        num_splits: (count) Pairs of halves, over which each τ is a mean.
        tau: (τ) Over all architectures of the truth; null, as the next two, where nothing can be ranked.
        tau_unique: (τ) Over the first of each group of architectures that are the same function.
        tau_top: (τ) Over the best 20 % by one half, of the order by the other.
    """

    num_seeds: int
    half: int
    num_splits: int
    tau: Number
    tau_unique: Number
    tau_top: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedBy(Record):
    """What searches were judged by. Its other keys are the options of the evaluation.

    Attributes:
        options: (options) Name → value.
        measure: (text) What was measured: the column of the truth, or the error of the task with its unit.
        description: (text) The same in words.
        lower_is_better: (true or false) Whether it is an error.
        ceiling: (object) Of the truth: how well one half of its training seeds ranks the other; null where it has one
            number per architecture, and without a truth.
    """

    flat: ClassVar[str] = "options"

    options: dict[str, str | int | None]
    measure: str
    description: str
    lower_is_better: bool
    ceiling: Ceiling | None = None

    def was_asked_for(self, config: EvaluationConfig) -> bool:
        """Whether the options are those of a configuration; files of other versions may have more or fewer.

        Args:
            config: Of an evaluation.
        """
        return all(self.options.get(name, value) == value for name, value in dataclasses.asdict(config).items())


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedSearch(Record):
    """One finished search against as many random architectures as it selected.

    Attributes:
        run: (text) The run that it is of.
        strategy: (text) Which search: its strategy.
        seed: (integer) Its seed.
        protection: (text) Its protection.
        found: (pairs) Architecture and value of what it selected, best first by its own reward; null where it diverged.
        random: (pairs) The same of as many that are drawn uniformly.
        found_mean: (measure) Mean value of `found`. This and the next three are over those that did not diverge, and
            null where all did.
        found_best: (measure) Best value of `found`.
        random_mean: (measure) Mean value of `random`.
        random_best: (measure) Best value of `random`.
        probability_of_surpassing_random: (probability) Mean over `found` of the chance that an architecture drawn
            uniformly is worse, ties half; over the whole truth, or over `random` without one.
        regret: (measure) From `found_best` to the best of the truth; null without one.
        tau: (object) `{"tau": {"mean", "low", "high"}, "num_architectures"}`: Kendall's τ-b of rewards on the shared
            weights with the truth, its interval over architectures, and how many there were, at most `--estimates`.
            null without a truth or without the search's stored state.
        tau_unique: (object) The same over the first of each group of architectures that are the same function.
        tau_top: (object) The same over the best 20 % by the truth.
        seconds: (seconds) Of the search, without measuring interference and without any training from scratch.
    """

    run: str
    strategy: str
    seed: int
    protection: str
    found: list[Valued]
    random: list[Valued]
    found_mean: Measured
    found_best: Measured
    random_mean: Measured
    random_best: Measured
    probability_of_surpassing_random: float
    regret: Number
    tau: RankCorrelation | None
    tau_unique: RankCorrelation | None
    tau_top: RankCorrelation | None
    seconds: float

    def number(self, key: str) -> float | None:
        """A number by its key in the file, of a rank correlation τ itself; None where there is none.

        Args:
            key: Such as `found_mean` or `tau_top`.
        """
        found: RankCorrelation | float | None = getattr(self, key)
        if isinstance(found, RankCorrelation):
            return None if found.tau is None else found.tau.mean
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedSummary(Record):
    """The searches of a run, strategy and protection, over seeds.

    Attributes:
        run: (text) Of its searches.
        strategy: (text) Of its searches.
        protection: (text) Of its searches.
        num_seeds: (count) Searches that it is over.
        found_mean: (measure) Interval over seeds, as all up to `gain`.
        found_best: (measure) Over seeds.
        random_mean: (measure) Over seeds.
        random_best: (measure) Over seeds.
        regret: (measure) Over seeds.
        seconds: (seconds) Over seeds.
        probability_of_surpassing_random: (probability) Over seeds.
        tau: (τ) Over seeds.
        tau_unique: (τ) Over seeds.
        tau_top: (τ) Over seeds.
        gain: (measure) How much better `found_mean` is than `random_mean`, seed by seed; positive is better.
        p: (probability) Of `gain`, one-sided.
        test: (text) By which test: `seeds`, the sign-flip test over seeds; or, with one seed, `architectures`, a
            permutation test between the two groups. Both are null where too few are left for a test.
    """

    run: str
    strategy: str
    protection: str
    num_seeds: int
    found_mean: Interval | None
    found_best: Interval | None
    random_mean: Interval | None
    random_best: Interval | None
    regret: Interval | None
    seconds: Interval | None
    probability_of_surpassing_random: Interval | None
    tau: Interval | None
    tau_unique: Interval | None
    tau_top: Interval | None
    gain: Interval | None
    p: float | None
    test: Literal["seeds", "architectures"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedBaseline(Record):
    """What a rule that needs no search selects on one seed.

    Attributes:
        run: (text) The run whose space, task and seed it is of.
        rule: (text) Its name.
        seed: (integer) Of the initial weights and of the batch that it looks at.
        found: (pairs) Architecture and value of what it selected, best first by its own score.
        found_mean: (measure) Mean value of `found`.
        found_best: (measure) Best value of `found`.
        regret: (measure) From `found_best` to the best of the truth.
        tau: (τ) Of its score with the truth, over the architectures that it chose from; null where all are equal.
        tau_top: (τ) The same over the best 20 % by the truth.
    """

    run: str
    rule: str
    seed: int
    found: list[Valued]
    found_mean: float
    found_best: float
    regret: float
    tau: Number
    tau_top: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineSummary(Record):
    """A rule that needs no search, over seeds.

    Attributes:
        rule: (text) Its name.
        num_seeds: (count) Seeds that it is over.
        found_mean: (measure) Interval over seeds, as all below.
        found_best: (measure) Over seeds.
        regret: (measure) Over seeds.
        tau: (τ) Over seeds.
        tau_top: (τ) Over seeds.
    """

    rule: str
    num_seeds: int
    found_mean: Interval | None
    found_best: Interval | None
    regret: Interval | None
    tau: Interval | None
    tau_top: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Beats(Record):
    """Whether a search selects better than a reference.

    Attributes:
        run: (text) Of the search; empty where each seed is a run of its own.
        strategy: (text) Which search: its strategy.
        protection: (text) Its protection.
        rule: (text) The reference: `random`, `parameters`, or `best proxy`, the rule whose selection was best on all
            other seeds.
        num_seeds: (count) Seeds that both have.
        gain: (measure) How much better the mean of what the search selects is, seed by seed; positive is better.
        p: (probability) Of the two-sided sign-flip test.
        adjusted_p: (probability) After Holm's correction over all entries.
        mark: (text) `better` or `worse` where `adjusted_p` ≤ 0.05, else null.
    """

    run: str
    strategy: str
    protection: str
    rule: str
    num_seeds: int
    gain: Interval
    p: float
    adjusted_p: float
    mark: Literal["better", "worse"] | None


class UndefinedRule(NamedTuple):
    """A rule that has no score here, and why."""

    rule: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation(Record):
    """What evaluation.json holds.

    Attributes:
        about: (object) What searches were judged by.
        searches: (list) An entry per finished search.
        summary: (list) An entry per run, strategy and protection.
        failures: (list) Architecture, seed and reason of each training from scratch that failed twice.
        baselines: (list) An entry per rule that needs no search, run and seed; with a truth only.
        beats: (list) An entry per run, strategy, protection and reference.
        undefined: (pairs) Each rule that has no score here, and why.
    """

    about: JudgedBy
    searches: list[JudgedSearch]
    summary: list[JudgedSummary]
    failures: list[FailedTraining]
    baselines: tuple[JudgedBaseline, ...] = ()
    beats: tuple[Beats, ...] = ()
    undefined: tuple[UndefinedRule, ...] = ()


def load_evaluation(path: Path, previous: str = "") -> Evaluation:
    """What an evaluation left in a file.

    Args:
        path: The file.
        previous: As it was sealed with.

    Raises:
        FileNotFoundError: If it is not there.
        InputError: If it cannot be read, or is not what was written.
    """
    return Evaluation.from_dict(read_sealed(path, previous), "an evaluation", str(path))
