"""The records of a two-model run: what a line of its `metrics.jsonl` holds."""

import math
from dataclasses import dataclass

from forgetless.experiments.two_model.config import Arm
from forgetless.forgetting import Interval
from forgetless.records import Record
from forgetless.schema import Measured, Number


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord(Record):
    """One model of the chain, in the order of training.

    Attributes:
        model: (text) `A`, `B`, …
        accuracy_before: (fraction) Its test accuracy after its own last step.
        accuracy_after: (fraction) Its test accuracy after the last model's last step.
        forgetting: (fraction) `accuracy_before − accuracy_after`; 0 for the last model, after which nothing is trained.
    """

    model: str
    accuracy_before: Measured
    accuracy_after: Measured
    forgetting: Measured


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveRecord(Record):
    """Test accuracies while B and the later models train.

    Followed every `evaluate_every` steps, at an eighth, a quarter and half of each model's first such interval, and at
    its last step.

    Attributes:
        iteration: (steps) After A, over all later models: B has 1 … `iterations`, C the next `iterations`. 0 is before
            B's first step.
        accuracy_a: (fraction) A's test accuracy.
        accuracy_b: (fraction) Test accuracy of the model in training: B's, then C's, …. There is no point for C before
            its first step.
    """

    iteration: list[int]
    accuracy_a: list[Measured]
    accuracy_b: list[Measured]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord(Record):
    """One arm: B, and later models, trained from one A under one protection.

    Attributes:
        seed: (integer) 0, 1, …: initial weights and order of the batches. All protections of a seed start from the
            same A and see the same batches.
        shared: (integer) How many of A's hidden layers B holds too.
        convergence: (fraction) In (0, 1]: A was stopped when its accuracy on the first 1,000 validation images first
            passed this share of its validation accuracy after `iterations_a` steps; at 1 it took all of them.
        protection: (text) Its name.
        strength: (number or null) Strength α of `wpl`, `l2`, `coupling`, …; the tolerance of `wpl-tolerance`, in nats;
            the number of directions of `ogl`; for `matched-lr` the α of the `wpl` run that it is matched to; null where
            there is none.
        wiring: (text) `prefix` or `crossed`.
        accuracy_a_before: (fraction) A's test accuracy right after its own training, before B's first step.
        accuracy_a_after: (fraction) A's test accuracy after the last model's last step.
        accuracy_a_min: (fraction) Least value of `curve.accuracy_a`, hence at the resolution of `evaluate_every`.
        accuracy_b: (fraction) B's test accuracy after its own last step (in a chain: before C trains).
        forgetting: (fraction) `accuracy_a_before − accuracy_a_after`, which is err₂ − err₁ of A. Negative where A
            improved.
        validation_forgetting: (fraction) The same on the validation split.
        validation_b: (fraction) `accuracy_b` on the validation split.
        loss_a_before: (nats per image) A's mean cross entropy on the test split, at the time of `accuracy_a_before`.
            This and the next three are missing in files of the first versions.
        loss_a_after: (nats per image) The same at the time of `accuracy_a_after`.
        validation_loss_a_before: (nats per image) `loss_a_before` on the validation split.
        validation_loss_a_after: (nats per image) `loss_a_after` on the validation split. A tolerance is kept on
            neither, but on the importance split.
        steps_of_a: (steps) How many steps A was trained.
        mean_step: (Euclidean length) Mean over the steps of all models after A of ‖θ_s(t+1) − θ_s(t)‖₂, all shared
            weights in one vector, the proximal step included.
        shared_learning_rate: (learning rate) Of the shared weights. The configured one, except under `matched-lr`,
            where it is searched for (8 tries at most) until `mean_step` is within 5 % of that of the `wpl` run of the
            same seed, setting and α.
        models: (list) One entry per model, in the order of training.
        curve: (lists of equal length) Test accuracies while B and the later models train.
        seconds: (seconds) Wall clock of training and following B and the later models, the Fisher and, under
            `matched-lr`, every try included. A's own training is not, because it is shared by the arms of a seed. It
            alone differs between two runs of the same command.
    """

    seed: int
    shared: int
    convergence: float
    protection: str
    strength: Number
    wiring: str
    accuracy_a_before: Measured
    accuracy_a_after: Measured
    accuracy_a_min: Measured
    accuracy_b: Measured
    forgetting: Measured
    validation_forgetting: Measured
    validation_b: Measured
    loss_a_before: Measured = math.nan
    loss_a_after: Measured = math.nan
    validation_loss_a_before: Measured = math.nan
    validation_loss_a_after: Measured = math.nan
    steps_of_a: int
    mean_step: Measured
    shared_learning_rate: Measured
    models: list[ModelRecord]
    curve: CurveRecord
    seconds: float

    @property
    def arm(self) -> Arm:
        """Which it is of."""
        return Arm(self.seed, self.shared, self.convergence, self.protection, self.strength)

    @property
    def mean_forgetting(self) -> float:
        """Over the models but the last, after which nothing is trained."""
        return sum(model.forgetting for model in self.models[:-1]) / (len(self.models) - 1)

    @property
    def starts(self) -> list[int]:
        """Where in the curve each model's part begins."""
        iterations, later = self.curve.iteration, len(self.models) - 1
        each = iterations[-1] / later
        return [0] + [next(i for i, at in enumerate(iterations) if at > j * each) for j in range(1, later)]

    @property
    def is_diverged(self) -> bool:
        """Whether a model ended without finite outputs."""
        accuracies = (self.accuracy_a_before, self.accuracy_a_after, self.accuracy_b, self.validation_b)
        curves = (*self.curve.accuracy_a, *self.curve.accuracy_b)
        lost = (model.forgetting for model in self.models)
        return not all(map(math.isfinite, (*accuracies, *curves, self.mean_step, *lost)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary(Record):
    """One model of the chain, over seeds.

    Attributes:
        model: (text) `A`, `B`, …
        forgetting: (fraction) Of its `forgetting`.
    """

    model: str
    forgetting: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary(Record):
    """What a protection at one strength did to A and to B in one setting, over seeds.

    Attributes:
        protection: (text) Of its records.
        wiring: (text) Of its records.
        shared: (integer) Of its records.
        convergence: (fraction) Of its records.
        strength: (number or null) Of its records.
        num_seeds: (count) Records n that it is over.
        num_diverged: (count) Records that are left out, because a model ended without finite outputs. `reduction` and
            `cost_b` are over the seeds in which neither arm diverged.
        accuracy_a_before: (fraction) Interval over seeds: x̄ and x̄ ± t · s/√n, with t the 97.5 % point of Student's t
            with n − 1 degrees of freedom.
        accuracy_a_after: (fraction) Interval over seeds.
        accuracy_a_min: (fraction) Interval over seeds.
        accuracy_b: (fraction) Interval over seeds.
        forgetting: (fraction) Interval over seeds.
        reduction: (share; 1 is all) 1 − mean(forgetting) / mean(forgetting without protection), over the same seeds.
            The ends are the 2.5 % and 97.5 % points of 9,999 bootstrap resamples of the seeds (both arms together,
            generator seeded with 0); a resample in which the unprotected arm does not forget counts as −∞, and an end
            that is not finite is null, as both are for one seed. Negative where protection made it worse; above 1
            where A improved under it. **null** for `none` itself, where the unprotected arm does not forget
            (mean ≤ 0: no forgetting to reduce), and where an unprotected record of one of the seeds is missing.
        cost_b: (fraction) Interval as for accuracies, of B's `accuracy_b` without protection minus that with it, seed
            by seed. Negative where B is better off. null for `none`, and where an unprotected record is missing: this
            tells the two reasons for a null `reduction` apart.
        models: (list) One entry per model, in the order of training.
        seconds: (seconds) Sum over its records.
    """

    protection: str
    wiring: str
    shared: int
    convergence: float
    strength: float | None
    num_seeds: int
    num_diverged: int
    accuracy_a_before: Interval
    accuracy_a_after: Interval
    accuracy_a_min: Interval
    accuracy_b: Interval
    forgetting: Interval
    reduction: Interval | None
    cost_b: Interval | None
    models: list[ModelSummary]
    seconds: float
