"""The records of a search: what a line of its `metrics.jsonl` holds, and which lines a configuration makes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from forgetless.errors import InputError
from forgetless.forgetting import Interval
from forgetless.records import Record, record_of
from forgetless.runs import METRICS, RunFolder
from forgetless.schema import Number, expect_place
from forgetless.search.config import SearchArm, SearchConfig, search_arms


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord(Record):
    """One epoch of a search.

    Attributes:
        seed: (integer) 0, 1, …: initial weights, order of the batches, and the strategy's random numbers.
        protection: (text) Its name.
        epoch: (integer) From 0.
        forgetting_mean: (error) Mean over the epoch's models of err₂ − err₁. err₁ is a model's error right after its
            own training, err₂ that with the weights at the end of the epoch; both on the same batches of the second
            half of `validation`. The epoch's last model counts, though nothing is trained after it. err₁ is taken
            before consolidation: under the rule `merge`, which moves weights then, see `error_consolidated`. Models
            that diverged at either time are left out; null if all did.
        forgetting_best: (error) The same over the 5 models with the lowest err₁ (all, if there are fewer).
        forgetting_max: (error) The largest err₂ − err₁.
        num_models: (count) Models that the three are over.
        num_diverged: (count) Models that are left out; the two add up to `models_per_epoch`.
        multi_model_part: (error) What it costs a model, on average over all ordered pairs of a fixed sample, that
            another one was trained and not itself, both from the weights at the end of the epoch; measured every
            `interference_every` epochs, null in all others.
        error_first: (error) Mean of the finite err₁, those of diverged models included.
        error_consolidated: (error) The same, measured after consolidation; it differs where that moves weights, which
            only the rule `merge` does.
        error_second: (error) Mean of the finite err₂, those of diverged models included.
        is_protected: (true or false) Whether the protection was at work in this epoch (`protect_from`); false for
            `none` and `matched-lr`.
        penalty: (nats) α/2 Σ F_i (θ_i − θ̂_i)² at the end of the epoch, over all protected weights, with the importance
            F and the anchor θ̂ as they then are; under `coupling` α/2 vᵀ Ω v; 0 where the protection is no penalty.
            Under `wpl-tolerance` α is the multiplier that the last step found.
        mean_step: (Euclidean length) Mean over the epoch's models of the mean over their steps of
            ‖θ_s(t+1) − θ_s(t)‖₂, all shared weights (`protect`) in one vector, the proximal step included.
        mean_net_step: (Euclidean length) Mean over the epoch's models of ‖θ_s(after) − θ_s(before)‖₂ /
            `batches_per_model`, from before its training to after its consolidation. Shorter than `mean_step`,
            because steps partly cancel.
        num_passed_over: (count) Batches of the epoch whose gradient was not finite; no step was taken on them.
        learning_rate: (learning rate) Of the shared weights, at the epoch's last batch. The configured one times the
            factor of its schedule, except under `matched-lr`: there, in epochs in which `wpl` was protected, it is
            scaled before each model such that `mean_step` becomes that of `wpl` in the same epoch (`mean_net_step`
            under the rule `merge`, which moves weights when it consolidates), as a running mean over the models before
            predicts.
        strategy: What the strategy tells of its steps: mean over the epoch's calls of `learn`, of which there are
            `strategy_steps`. A key is missing where no call had it.
        seconds: (seconds) Wall clock by phase: `train`, `evaluate` (err₁ and err₂), `consolidate` (the Fisher
            included), `learn`, and `interference` where it was measured. It alone differs between two runs of the
            same command.
    """

    event: ClassVar[str] = "epoch"
    flat: ClassVar[str] = "strategy"
    prefix: ClassVar[str] = "strategy_"

    seed: int
    protection: str
    epoch: int
    forgetting_mean: Number
    forgetting_best: Number
    forgetting_max: Number
    num_models: int
    num_diverged: int
    multi_model_part: Number
    error_first: Number
    error_consolidated: Number
    error_second: Number
    is_protected: bool
    penalty: Number
    mean_step: Number
    mean_net_step: Number
    num_passed_over: int
    learning_rate: float
    strategy: dict[str, Number]
    seconds: dict[str, float]

    @property
    def arm(self) -> SearchArm:
        """Whose epoch it is."""
        return SearchArm(self.seed, self.protection)

    def number(self, key: str) -> float | None:
        """A number by its key in the file; None where there is none.

        Args:
            key: Such as `penalty` or `strategy_mean_reward`.
        """
        is_own = key.startswith(self.prefix)
        found: float | None = self.strategy.get(key.removeprefix(self.prefix)) if is_own else getattr(self, key)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedRecord(Record):
    """What one search, a seed under one protection, selected.

    Attributes:
        seed: (integer) As above.
        protection: (text) As above.
        architecture: (text) The one with the greatest reward, on the shared weights, of the `final_samples`
            architectures that the strategy selects; the first of equals. With the strategy `random` the first that was
            drawn.
        reward: (reward) That reward; null with `random`.
        candidates: (list) Pairs of architecture and reward: the different ones among these `final_samples`, best
            first, null and last where it diverged; with `random` in the order in which they were drawn, all null.
            `forgetless evaluate` takes its `--top` from them. Missing in files of the first versions.
        random_architecture: (text) Drawn uniformly from the space; the same for all protections of a seed.
        derived_validation_error: (error) Of the derived architecture, after training it alone, from new weights of the
            same seed, without protection, for `final_batches` batches
            (`epochs` · `models_per_epoch` · `batches_per_model` if that is 0), on all of the split.
        derived_test_error: (error) The same on the test split.
        random_validation_error: (error) The same of the random architecture.
        random_test_error: (error) The same on the test split.
        seconds: (seconds) `derive`: rewards, both trainings and their errors.
    """

    event: ClassVar[str] = "derived"

    seed: int
    protection: str
    architecture: str
    reward: Number
    candidates: list[tuple[str, Number]] | None = None
    random_architecture: str
    derived_validation_error: Number
    derived_test_error: Number
    random_validation_error: Number
    random_test_error: Number
    seconds: dict[str, float]

    @property
    def arm(self) -> SearchArm:
        """Whose it is."""
        return SearchArm(self.seed, self.protection)


SearchRecord: TypeAlias = EpochRecord | DerivedRecord

_KINDS: Mapping[str, type[SearchRecord]] = {kind.event: kind for kind in (EpochRecord, DerivedRecord)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSummary(Record):
    """What a protection did, over the seeds that have all their epochs.

    Attributes:
        protection: (text) Its name.
        num_seeds: (count) Seeds that have all their epochs.
        forgetting_mean: (error) Interval of the seeds' means over the forgetting epochs: from the first in which every
            finished seed is protected (until then all arms are the same) to the last in which the unprotected models
            got worse on average; without these, or without one of the two arms, the last half of the epochs (of 5 the
            last 3). An epoch in which all models diverged is left out.
        reduction_mean: (share; 1 is all) 1 − mean(forgetting) / mean(forgetting without protection) over the same
            seeds, with the bootstrap interval of a two-model `reduction`. null for `none` itself, where the
            unprotected models do not forget (mean ≤ 0: no forgetting to reduce), and where the unprotected search of
            one of the seeds is missing.
        forgetting_best: (error) As `forgetting_mean`, of the best 5.
        reduction_best: (share) Of it.
        forgetting_max: (error) As `forgetting_mean`, of the maximum.
        reduction_max: (share) Of it.
        multi_model_part: (error) As `forgetting_mean`, over those of these epochs that have it.
        reduction_multi_model: (share) Of it.
        reward: (reward) Interval of the seeds' means of `strategy_mean_reward` over the last quarter of the epochs,
            rounded up.
        derived_test_error: (error) Interval over seeds.
        random_test_error: (error) Interval over seeds.
        gain: (error) Interval of `random_test_error` − `derived_test_error`, seed by seed: positive where the search
            is better than random.
        num_models: (count) Sum over all epochs of these seeds.
        num_diverged: (count) Sum over all epochs of these seeds.
        seconds: (seconds) Sum over all records of the protection.
    """

    protection: str
    num_seeds: int
    forgetting_mean: Interval | None
    reduction_mean: Interval | None
    forgetting_best: Interval | None
    reduction_best: Interval | None
    forgetting_max: Interval | None
    reduction_max: Interval | None
    multi_model_part: Interval | None
    reduction_multi_model: Interval | None
    reward: Interval | None
    derived_test_error: Interval | None
    random_test_error: Interval | None
    gain: Interval | None
    num_models: int
    num_diverged: int
    seconds: float


def search_record(values: Mapping[str, Any], where: str) -> SearchRecord:
    """The record that a line of a search's `metrics.jsonl` holds.

    Args:
        values: Of the line.
        where: It is, for messages.

    Raises:
        InputError: If it is no record of a search.
    """
    found: SearchRecord = record_of(values, _KINDS, "search", where)
    return found


def read_records(config: SearchConfig, folder: RunFolder) -> list[SearchRecord]:
    """The records of a search's folder.

    Args:
        config: Of the folder.
        folder: The folder.

    Returns:
        As far as the search got.

    Raises:
        InputError: If a line is damaged, no record, or not one that the configuration makes at this place.
    """
    records = [record for record, _ in folder.read_records(search_record)]
    check_records(config, records, str(folder.path / METRICS))
    return records


def check_records(config: SearchConfig, records: Sequence[SearchRecord], path: str) -> None:
    """Refuse records that the configuration does not make in this order.

    Args:
        config: The configuration.
        records: Of a file, in its order.
        path: The file, for messages.

    Raises:
        InputError: If one is of an arm that was not asked for, doubled, or out of order.
    """
    arms = search_arms(config)
    allowed: dict[Any, int] = {(arm, EpochRecord.event): config.num_epochs for arm in arms}
    allowed |= {(arm, DerivedRecord.event): int(config.selection.final_samples > 0) for arm in arms}
    seen: dict[Any, int] = {}
    for line, record in enumerate(records, start=1):
        where, arm = f"line {line} of {path}", record.arm
        what = f"the {record.event} of seed {arm.seed} under {arm.protection}"
        expect_place((arm, record.event), allowed, seen, what, where)
        epochs = seen.get((arm, EpochRecord.event), 0)
        if isinstance(record, EpochRecord):
            if record.epoch != epochs - 1:
                raise InputError(
                    f"Expected epoch {epochs - 1} of {what[13:]} in {where}, but got epoch {record.epoch}."
                )
        elif epochs < config.num_epochs:
            raise InputError(f"Expected all {config.num_epochs} epochs before {what} in {where}, but got {epochs}.")
