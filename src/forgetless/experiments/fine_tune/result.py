"""The runs of a fine-tuning experiment, and their summary over seeds."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

from forgetless.experiments.fine_tune.config import FineTuneConfig, arms
from forgetless.experiments.fine_tune.records import FineTuneRecord, MethodSummary
from forgetless.forgetting import Interval, mean_interval


@dataclass(frozen=True)
class FineTuneResult:
    """The runs made so far, and their summary over seeds.

    Attributes:
        config: What was asked.
        runs: One per arm.
        diverged: Those in which the model ended without finite losses; they are in no mean.
    """

    config: FineTuneConfig
    runs: list[FineTuneRecord]
    diverged: list[FineTuneRecord] = field(default_factory=list)

    @classmethod
    def of(cls, config: FineTuneConfig, records: Sequence[FineTuneRecord]) -> Self:
        """The result that records tell of, those that diverged apart.

        Args:
            config: What was asked.
            records: Of finished arms.
        """
        return cls(config, [r for r in records if not r.is_diverged], [r for r in records if r.is_diverged])

    @property
    def progress(self) -> tuple[int, int]:
        """How many runs are finished, and how many the configuration asks for."""
        wanted = arms(self.config)
        made = {run.arm for run in [*self.runs, *self.diverged]}
        return sum(arm in made for arm in wanted), len(wanted)

    def summary(self) -> list[MethodSummary]:
        """One entry per new text, protection, what it saw of the past, and strength: means with 95 % intervals.

        Returns:
            Entries in the order of the configuration; none for an arm whose every seed diverged.
        """
        return self._summary

    @cached_property
    def _summary(self) -> list[MethodSummary]:
        diverged = Counter(map(_key, self.diverged))
        groups: dict[Hashable, list[FineTuneRecord]] = {}
        for run in self.runs:
            groups.setdefault(_key(run), []).append(run)
        found = [_summarise(runs, diverged[key]) for key, runs in groups.items()]
        return [
            dataclasses.replace(each, is_dominated=any(_dominates(other, each) for other in found)) for each in found
        ]


def _key(run: FineTuneRecord) -> Hashable:
    return run.to, run.protection, run.on, run.strength


def _dominates(one: MethodSummary, other: MethodSummary) -> bool:
    """Whether one of the same new text loses less of the old text and learns more of the new."""
    is_better = one.old_increase.mean < other.old_increase.mean and one.new.mean < other.new.mean
    return one.to == other.to and is_better


def _summarise(runs: Sequence[FineTuneRecord], num_diverged: int) -> MethodSummary:
    def over_seeds(quantity: Callable[[FineTuneRecord], float]) -> Interval:
        return mean_interval([quantity(run) for run in runs])

    first = runs[0]
    return MethodSummary(
        to=first.to,
        protection=first.protection,
        on=first.on,
        strength=first.strength,
        num_seeds=len(runs),
        num_diverged=num_diverged,
        old_increase=over_seeds(lambda run: run.increase),
        new=over_seeds(lambda run: run.new_after),
        new_validation=over_seeds(lambda run: run.new_validation),
        expected_loss_increase=None if first.on is None else over_seeds(lambda run: run.expected_loss_increase),
        seconds=sum(run.seconds for run in runs) / len(runs),
        passes=first.passes,
        held=first.held,
        is_dominated=False,
    )
