"""The records of a fine-tuning run: what a line of its `metrics.jsonl` holds."""

import math
from dataclasses import dataclass

from forgetless.experiments.fine_tune.config import Arm
from forgetless.forgetting import Interval
from forgetless.records import Record
from forgetless.schema import Measured, Number


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneCurve(Record):
    """Losses on both test texts while a model is fine-tuned.

    Followed every `evaluate_every` steps, at an eighth, a quarter and half of the first such interval, and at the last
    step. A protection that acts when training has ended adds a point at the last step with what it made.

    Attributes:
        step: (steps) 0 is before the first.
        old: (nats per token) Loss on 200 windows of the old test text.
        new: (nats per token) Loss on 200 windows of the new test text.
    """

    step: list[int]
    old: list[Measured]
    new: list[Measured]


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneRecord(Record):
    """One arm: a pretrained model, fine-tuned on a new text under one protection.

    Attributes:
        seed: (integer) 0, 1, …: initial weights, order of the batches, own samples. All protections of a seed start
            from the same pretrained model and see the same batches.
        to: (text) The new text: its name, or the path of its folder.
        protection: (text) Its name.
        on: (text or null) What it saw of the past: `own-samples`, `old-data` or `new-inputs`; null where it needs
            nothing.
        strength: (number or null) Its strength; null where there is none.
        old_before: (nats per token) Loss of the pretrained model on the old test text.
        old_after: (nats per token) Loss of the fine-tuned model on the old test text.
        new_before: (nats per token) Loss of the pretrained model on the new test text.
        new_after: (nats per token) Loss of the fine-tuned model on the new test text.
        new_validation: (nats per token) `new_after` on the validation split: strengths are chosen by it.
        expected_loss_increase: (nats per token) How much the loss grew on as many windows of what `on` names, which the
            protection did not see: what a user without the old text can measure. null where `on` is null.
        steps: (steps) Of fine-tuning.
        passes: (plain steps) What a step of the protection costs, as it declares.
        held: (numbers per weight) What it keeps in memory for each weight, about.
        seconds: (seconds) Wall clock of fine-tuning and of what the protection needs: own samples, Fisher. Pretraining
            and measurements for the curve are not in it. It alone differs between two runs of the same command.
        curve: (lists of equal length) Losses on the way.
    """

    seed: int
    to: str
    protection: str
    on: str | None
    strength: Number
    old_before: Measured
    old_after: Measured
    new_before: Measured
    new_after: Measured
    new_validation: Measured
    expected_loss_increase: Measured
    steps: int
    passes: float
    held: float
    seconds: float
    curve: FineTuneCurve

    @property
    def arm(self) -> Arm:
        """Which it is of."""
        return Arm(self.seed, self.to, self.protection, self.on, self.strength)

    @property
    def increase(self) -> float:
        """How much of the old text was lost, in nats per token."""
        return self.old_after - self.old_before

    @property
    def is_diverged(self) -> bool:
        """Whether the model ended without finite losses."""
        losses = (self.old_before, self.old_after, self.new_before, self.new_after, self.new_validation)
        return not all(map(math.isfinite, losses))


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSummary(Record):
    """What a protection at one strength did to the old and the new text, over seeds.

    Attributes:
        to: (text) Of its records.
        protection: (text) Of its records.
        on: (text or null) Of its records.
        strength: (number or null) Of its records.
        num_seeds: (count) Records n that it is over.
        num_diverged: (count) Records that are left out, because the model ended without finite losses.
        old_increase: (nats per token) Of `old_after − old_before`. Interval over seeds: x̄ and x̄ ± t · s/√n, with t the
            97.5 % point of Student's t with n − 1 degrees of freedom.
        new: (nats per token) Of `new_after`. Interval over seeds.
        new_validation: (nats per token) Of `new_validation`. Interval over seeds.
        expected_loss_increase: (nats per token) Of `expected_loss_increase`. Interval over seeds; null where `on` is.
        seconds: (seconds) Mean over its records.
        passes: (plain steps) Of its records.
        held: (numbers per weight) Of its records.
        is_dominated: (true or false) Whether another entry of the same new text has both a smaller mean `old_increase`
            and a smaller mean `new`.
    """

    to: str
    protection: str
    on: str | None
    strength: float | None
    num_seeds: int
    num_diverged: int
    old_increase: Interval
    new: Interval
    new_validation: Interval
    expected_loss_increase: Interval | None
    seconds: float
    passes: float
    held: float
    is_dominated: bool
