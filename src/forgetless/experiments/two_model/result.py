"""The runs of a two-model experiment, and their summary over seeds."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property

from forgetless.experiments.arms import ArmsResult, grouped
from forgetless.experiments.two_model.config import Arm, TwoModelConfig, arms
from forgetless.experiments.two_model.records import ArmSummary, ModelSummary, RunRecord
from forgetless.forgetting import Interval, mean_interval, reduction


class TwoModelResult(ArmsResult[TwoModelConfig, RunRecord, ArmSummary]):
    """The runs made so far; its summary is by protection, strength, number of shared layers and convergence.

    `reduction` is None for the unprotected arm, and where that arm does not forget; it is over the seeds in which
    neither arm diverged.
    """

    @property
    def wanted(self) -> list[Arm]:
        """What the configuration asks for."""
        return arms(self.config)

    def _summarised(self) -> list[ArmSummary]:
        diverged = Counter(map(_key, self.diverged))
        return [_summarise(runs, self._pairs(runs), diverged[key]) for key, runs in grouped(self.runs, _key).items()]

    def _pairs(self, runs: Sequence[RunRecord]) -> list[tuple[RunRecord, RunRecord]]:
        """Runs with the unprotected ones of the same seeds and the same A; nothing if one of these is still missing."""
        found = [(run, self._unprotected.get(_origin(run))) for run in runs]
        pairs = [(run, plain) for run, plain in found if plain is not None]
        lost = {_origin(run) for run in self.diverged if run.protection == "none"}
        return pairs if all(plain is not None or _origin(run) in lost for run, plain in found) else []

    @cached_property
    def _unprotected(self) -> dict[Hashable, RunRecord]:
        return {_origin(run): run for run in self.runs if run.protection == "none"}


def _origin(run: RunRecord) -> Hashable:
    return run.seed, run.shared, run.convergence


def _key(run: RunRecord) -> Hashable:
    return run.shared, run.convergence, run.protection, run.strength


def _summarise(
    runs: Sequence[RunRecord], pairs: Sequence[tuple[RunRecord, RunRecord]], num_diverged: int
) -> ArmSummary:
    def over_seeds(quantity: Callable[[RunRecord], float]) -> Interval:
        return mean_interval([quantity(run) for run in runs])

    first = runs[0]
    prevented: Interval | None = None
    cost: Interval | None = None
    if pairs and first.protection != "none":
        prevented = reduction([run.forgetting for run, _ in pairs], [plain.forgetting for _, plain in pairs])
        cost = mean_interval([plain.accuracy_b - run.accuracy_b for run, plain in pairs])
    return ArmSummary(
        protection=first.protection,
        wiring=first.wiring,
        shared=first.shared,
        convergence=first.convergence,
        strength=first.strength,
        num_seeds=len(runs),
        num_diverged=num_diverged,
        accuracy_a_before=over_seeds(lambda run: run.accuracy_a_before),
        accuracy_a_after=over_seeds(lambda run: run.accuracy_a_after),
        accuracy_a_min=over_seeds(lambda run: run.accuracy_a_min),
        accuracy_b=over_seeds(lambda run: run.accuracy_b),
        forgetting=over_seeds(lambda run: run.forgetting),
        reduction=prevented,
        cost_b=cost,
        models=[
            ModelSummary(model=model.model, forgetting=mean_interval([run.models[j].forgetting for run in runs]))
            for j, model in enumerate(first.models)
        ],
        seconds=sum(run.seconds for run in runs),
    )
