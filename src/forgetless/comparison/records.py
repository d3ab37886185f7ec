"""What a comparison found, as `forgetless compare --json` prints it: its rows, ranked, and the tests between them."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from forgetless.comparison.config import Measure, Row
from forgetless.evaluation.records import BaselineSummary, Beats, JudgedBy, UndefinedRule
from forgetless.forgetting import Interval
from forgetless.records import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSummary(Record):
    """A strategy under a protection.

    Attributes:
        rank: (integer) Its place by `found_mean`, from 1.
        strategy: (text) Which row: its strategy.
        protection: (text) Its protection.
        forgetting_epochs: (epochs) The first, and the first no longer, of those that its forgetting is averaged over.
        intervals: (intervals) Measure → its mean over seeds with the 95 % interval; None where no seed has a value.
        seeds: (object) Each of the measures → seed → value.
    """

    flat: ClassVar[str] = "intervals"

    rank: int
    strategy: str
    protection: str
    forgetting_epochs: tuple[int, int]
    intervals: dict[str, Interval | None]
    seeds: dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceTest(Record):
    """A difference between two rows that is tested.

    Attributes:
        measure: (text) Of what.
        row: (pair) Strategy and protection of one side.
        reference: (pair) The same of the other, which it is tested against.
        num_seeds: (count) Seeds that both have.
        difference: (measure) Row − reference, seed by seed: mean with its 95 % interval, not corrected.
        p: (probability) Of the two-sided sign-flip test.
        adjusted_p: (probability) After Holm's correction over all tests of the measure.
        mark: (text) `better` or `worse` where `adjusted_p` ≤ 0.05, else null.
    """

    measure: Measure
    row: Row
    reference: Row
    num_seeds: int
    difference: Interval
    p: float
    adjusted_p: float
    mark: Literal["better", "worse"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonSummary(Record):
    """Everything that the tables show.

    Attributes:
        about: (object) How the searches were judged, as in `evaluation.json`; null if none was.
        rows: (list) An entry per strategy and protection, the best first.
        tests: (list) An entry per difference that was tested.
        beats: (list) An entry per strategy, protection and reference without a search, as in `evaluation.json`.
        baselines: (list) An entry per rule without a search, the best first.
        undefined: (pairs) Each rule that has no score here, and why.
        missing: (object) Name of each unfinished strategy and seed → why it failed, or nothing.
    """

    about: JudgedBy | None
    rows: list[RowSummary]
    tests: list[DifferenceTest]
    beats: tuple[Beats, ...] = ()
    baselines: tuple[BaselineSummary, ...] = ()
    undefined: tuple[UndefinedRule, ...] = ()
    missing: dict[str, str]
