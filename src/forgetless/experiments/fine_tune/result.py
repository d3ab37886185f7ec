"""The runs of a fine-tuning experiment, and their summary over seeds."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

from forgetless.experiments.arms import ArmsResult, grouped
from forgetless.experiments.fine_tune.config import Arm, FineTuneConfig, arms
from forgetless.experiments.fine_tune.records import FineTuneRecord, MethodSummary
from forgetless.forgetting import Interval, mean_interval


class FineTuneResult(ArmsResult[FineTuneConfig, FineTuneRecord, MethodSummary]):
    """The runs made so far; its summary is by new text, protection, what it saw of the past, and strength."""

    @property
    def wanted(self) -> list[Arm]:
        """What the configuration asks for."""
        return arms(self.config)

    def _summarised(self) -> list[MethodSummary]:
        diverged = Counter(map(_key, self.diverged))
        found = [_summarise(runs, diverged[key]) for key, runs in grouped(self.runs, _key).items()]
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
