"""The result of a search: its records by epoch, and a summary per protection over seeds."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from forgetless.forgetting import Interval, interval_of_known, mean_interval, reduction
from forgetless.protection import main_of
from forgetless.search.config import SearchConfig, search_arms
from forgetless.search.records import DerivedRecord, EpochRecord, SearchRecord, SearchSummary
from forgetless.tasks import TASKS, Unit

FORGETTING = ("forgetting_mean", "forgetting_best", "forgetting_max")
REWARD = "strategy_mean_reward"
MULTI_MODEL = "multi_model_part"
REDUCTIONS = {
    **{key: key.replace("forgetting", "reduction") for key in FORGETTING},
    MULTI_MODEL: "reduction_multi_model",
}
"""What a protection may reduce → the key of its reduction in a summary."""


def epochs_text(epochs: range) -> str:
    """Epochs that are counted from 0, as people count them.

    >>> epochs_text(range(5, 10)), epochs_text(range(1))
    ('epochs 6 to 10', 'epoch 1')
    """
    return f"epochs {epochs.start + 1} to {epochs.stop}" if len(epochs) > 1 else f"epoch {epochs.stop}"


@dataclass(frozen=True)
class SearchResult:
    """A search: what was asked, and its records as far as it got.

    Args:
        config: What was asked.
        records: As `forgetless.search.run` returns them, or a run folder holds them.
    """

    config: SearchConfig
    records: list[SearchRecord]

    @property
    def unit(self) -> Unit:
        """Of its errors, and of differences of errors."""
        task = TASKS[self.config.space.kind.task]
        unit: Unit = task.unit
        by_loss = self.config.reward.score == "loss"
        return dataclasses.replace(unit, reward=task.loss_score) if by_loss else unit

    @property
    def protections(self) -> list[str]:
        """The protections that have records, in the order of the configuration."""
        present = {r.protection for r in self.epochs()} | {r.protection for r in self.derived()}
        return [name for name in self.config.arms if name in present]

    def epochs(self, protection: str | None = None, seed: int | None = None) -> list[EpochRecord]:
        """The records of epochs, of one protection or seed or of all.

        Args:
            protection: All if None.
            seed: All if None.
        """
        if seed is not None:
            names = self._arms_of if protection is None else {protection: self._arms_of.get(protection, {})}
            return [record for name in names for record in names[name].get(seed, ())]
        return self._all_epochs if protection is None else self._epochs_of.get(protection, [])

    @cached_property
    def _all_epochs(self) -> list[EpochRecord]:
        return [record for record in self.records if isinstance(record, EpochRecord)]

    @cached_property
    def _epochs_of(self) -> dict[str, list[EpochRecord]]:
        """Protection → its epochs; searched for once, since a search may have a hundred thousand records."""
        found: dict[str, list[EpochRecord]] = {}
        for record in self._all_epochs:
            found.setdefault(record.protection, []).append(record)
        return found

    @cached_property
    def _arms_of(self) -> dict[str, dict[int, list[EpochRecord]]]:
        """Protection → seed → epochs."""
        found: dict[str, dict[int, list[EpochRecord]]] = {}
        for record in self._all_epochs:
            found.setdefault(record.protection, {}).setdefault(record.seed, []).append(record)
        return found

    @cached_property
    def _all_derived(self) -> list[DerivedRecord]:
        return [record for record in self.records if isinstance(record, DerivedRecord)]

    def derived(self, protection: str | None = None) -> list[DerivedRecord]:
        """The records of derived architectures, of one protection or of all.

        Args:
            protection: All if None.
        """
        return [record for record in self._all_derived if protection in {None, record.protection}]

    def seeds(self, protection: str) -> list[int]:
        """The seeds of which a protection has all epochs; without epochs, those that selected something.

        Args:
            protection: The protection.
        """
        if protection not in self._seeds:
            self._seeds[protection] = self._finished_seeds(protection)
        return self._seeds[protection]

    @cached_property
    def _seeds(self) -> dict[str, list[int]]:
        return {}

    def _finished_seeds(self, protection: str) -> list[int]:
        if not self.config.num_epochs:
            return sorted(record.seed for record in self.derived(protection))
        arms = self._arms_of.get(protection, {})
        return [seed for seed in self.config.run.all_seeds if len(arms.get(seed, ())) == self.config.num_epochs]

    @property
    def has_multi_model_part(self) -> bool:
        """Whether the multi-model part was measured in some epoch."""
        return any(record.multi_model_part is not None for record in self.epochs())

    @property
    def progress(self) -> tuple[int, int]:
        """How many searches (a seed under a protection) are finished, and how many are asked for."""
        wanted = search_arms(self.config)
        ended = {record.arm for record in self.derived()}
        if not self.config.selection.final_samples:
            ended = {arm for arm in wanted if arm.seed in self.seeds(arm.protection)}
        return sum(arm in ended for arm in wanted), len(wanted)

    # ---- what is averaged ------------------------------------------------------------------------------------

    @cached_property
    def forgetting_epochs(self) -> range:
        """The epochs over which forgetting is averaged, from 0: those in which the unprotected searches forget.

        They begin where all finished seeds are protected, since until then all arms are the same, and end with the last
        epoch in which unprotected models got worse on average over models and seeds. Where there are none, or one of
        the two arms is missing, it is the last half, rounded up.
        """
        last_half = range(self.config.num_epochs // 2, self.config.num_epochs)
        seeds = set(self.seeds("none"))
        starts: dict[int, int] = {}  # of protection, by seed
        for record in self.epochs():
            if record.is_protected and record.seed in seeds:
                starts[record.seed] = min(record.epoch, starts.get(record.seed, record.epoch))
        if not starts or set(starts) != seeds:
            return last_half
        lost: dict[int, list[float]] = {}
        for record in self.epochs("none"):
            if record.seed in seeds and record.forgetting_mean is not None:
                lost.setdefault(record.epoch, []).append(record.forgetting_mean)
        forgets = [epoch for epoch, values in lost.items() if math.fsum(values) > 0]
        found = range(max(starts.values()), max(forgets, default=-1) + 1)
        return found or last_half

    @property
    def last_quarter(self) -> range:
        """The epochs over which rewards are averaged, from 0: the last quarter, rounded up."""
        return range(self.config.num_epochs - math.ceil(self.config.num_epochs / 4), self.config.num_epochs)

    def by_seed(self, protection: str, key: str, epochs: range) -> dict[int, float]:
        """Seed → mean of a quantity over some epochs; epochs in which it is missing are left out.

        Args:
            protection: Whose.
            key: Of a record.
            epochs: Which, from 0.

        Returns:
            One number per seed that has all its epochs, and a value in one of these.
        """
        found = {}
        for seed in self.seeds(protection):
            here = [record.number(key) for record in self.epochs(protection, seed) if record.epoch in epochs]
            if values := [value for value in here if value is not None]:
                found[seed] = math.fsum(values) / len(values)
        return found

    def summary(self) -> list[SearchSummary]:
        """What each protection did, over the seeds that have all epochs.

        Returns:
            One entry per protection that has such a seed, in the order of the configuration.
        """
        return self._whole_summary

    @cached_property
    def _whole_summary(self) -> list[SearchSummary]:
        return [self._summary_of(protection) for protection in self.protections if self.seeds(protection)]

    def _summary_of(self, protection: str) -> SearchSummary:
        entry: dict[str, Any] = {}
        for key, reduced in REDUCTIONS.items():
            mine = self.by_seed(protection, key, self.forgetting_epochs)
            entry[key] = interval_of_known(mine.values())
            entry[reduced] = self._reduction(protection, key, mine)
        epochs = [record for seed in self.seeds(protection) for record in self.epochs(protection, seed)]
        derived = self.derived(protection)
        errors = [(record.derived_test_error, record.random_test_error) for record in derived]
        seconds = [sum(record.seconds.values()) for record in self.epochs(protection)]
        seconds += [sum(record.seconds.values()) for record in derived]
        return SearchSummary(
            protection=protection,
            num_seeds=len(self.seeds(protection)),
            **entry,
            reward=interval_of_known(self.by_seed(protection, REWARD, self.last_quarter).values()),
            derived_test_error=interval_of_known(mine for mine, _ in errors),
            random_test_error=interval_of_known(drawn for _, drawn in errors),
            gain=interval_of_known(drawn - mine for mine, drawn in errors if mine is not None and drawn is not None),
            num_models=sum(record.num_models for record in epochs),
            num_diverged=sum(record.num_diverged for record in epochs),
            seconds=math.fsum(seconds),
        )

    def _reduction(self, protection: str, key: str, mine: Mapping[int, float]) -> Interval | None:
        """Against the unprotected searches of the same seeds; None where one is missing or does not forget."""
        free = self.by_seed("none", key, self.forgetting_epochs)
        if protection == "none" or not mine or not set(mine) <= set(free):
            return None
        return reduction(list(mine.values()), [free[seed] for seed in mine])

    @property
    def main(self) -> str | None:
        """The protection that findings are about, of those with a finished seed; None if none has one."""
        return main_of(name for name in self.protections if self.seeds(name))

    def by_epoch(self, protection: str, key: str) -> dict[int, list[float]]:
        """Epoch → a quantity over seeds, as far as it is known.

        Args:
            protection: Whose.
            key: Of a record.
        """
        found: dict[int, list[float]] = {}
        for record in self.epochs(protection):
            if (value := record.number(key)) is not None:
                found.setdefault(record.epoch, []).append(value)
        return found

    def best_derived(self, protection: str) -> DerivedRecord | None:
        """That of the seed with the lowest validation error after training from scratch; None without one.

        Args:
            protection: Whose.
        """
        found = [(record.derived_validation_error, record) for record in self.derived(protection)]
        judged = [(error, record) for error, record in found if error is not None]
        return min(judged, key=lambda pair: pair[0])[1] if judged else None

    @property
    def seconds_by_phase(self) -> dict[str, float]:
        """Phase → wall clock over all records, the longest first."""
        phases: dict[str, float] = {}
        for each in [*(epoch.seconds for epoch in self.epochs()), *(derived.seconds for derived in self.derived())]:
            for phase, seconds in each.items():
                phases[phase] = phases.get(phase, 0.0) + seconds
        return dict(sorted(phases.items(), key=lambda item: -item[1]))

    def paired(self, first: str, second: str, key: str, epochs: range) -> list[float]:
        """Means of a quantity under two protections, over the seeds that both have; empty if there is none.

        Args:
            first: One protection.
            second: The other.
            key: Of a record.
            epochs: Over which it is averaged, from 0.
        """
        arms = [self.by_seed(name, key, epochs) for name in (first, second)]
        seeds = sorted(set.intersection(*map(set, arms)))
        return [sum(arm[seed] for seed in seeds) / len(seeds) for arm in arms] if seeds else []

    def difference(self, first: str, second: str, key: str, epochs: range) -> Interval | None:
        """A quantity under one protection minus that under another, seed by seed.

        Args:
            first: One protection.
            second: The other.
            key: Of a record.
            epochs: Over which it is averaged, from 0.

        Returns:
            The mean over the seeds that both have, with its interval; None if there is none.
        """
        one, other = (self.by_seed(name, key, epochs) for name in (first, second))
        both = sorted(set(one) & set(other))
        return mean_interval([one[seed] - other[seed] for seed in both]) if both else None
