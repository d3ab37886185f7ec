"""What a search is asked to do, and which searches that makes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from forgetless.configuration import Configuration, Part, fitting, option
from forgetless.errors import InputError, expect_one_of
from forgetless.parts import (
    DataConfig,
    FisherConfig,
    OptimizerConfig,
    Resources,
    RunConfig,
    default_protections,
    fitted_protections,
)
from forgetless.protection import PROTECTIONS, ProtectionOptions
from forgetless.sampling import SAMPLERS, SamplerOptions
from forgetless.search.rates import RateConfig
from forgetless.spaces import SPACES, SpaceOptions
from forgetless.strategies import STRATEGIES, StrategyOptions
from forgetless.tasks import TASKS, TaskOptions

EXPERIMENT = "search"


@dataclass(frozen=True, kw_only=True)
class Schedule(Part):
    """How long a search trains and learns.

    Attributes:
        epochs: Epochs per arm.
        models_per_epoch: Architectures trained per epoch.
        batches_per_model: Training batches of each.
        batch_size: Sequences or images per batch.
        evaluation_batches: Batches of held-out data per error; all if 0.
        strategy_steps: Calls of the strategy's `learn` per epoch.
        samples_per_step: Architectures per call.
        single: Train one architecture only, the first proposed: what then is forgotten is no other model's doing.
    """

    title: ClassVar[str] = "Schedule"

    epochs: int = option(10, basic=True)
    models_per_epoch: int = option(10, basic=True)
    batches_per_model: int = option(7, basic=True)
    batch_size: int = 32
    evaluation_batches: int = 5
    strategy_steps: int = 5
    samples_per_step: int = 10
    single: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(1, "epochs", "models_per_epoch", "batches_per_model", "batch_size", "samples_per_step")
        self.expect_at_least(0, "evaluation_batches", "strategy_steps")

    @property
    def batches_per_epoch(self) -> int:
        """Training batches of an epoch."""
        return self.models_per_epoch * self.batches_per_model

    @property
    def num_batches(self) -> int:
        """Training batches of a whole arm."""
        return self.epochs * self.batches_per_epoch


@dataclass(frozen=True, kw_only=True)
class ProtectConfig(Part):
    """What is protected, and when.

    Attributes:
        start: First epoch with protection, from 0; or `forgetting`: the one after the first in which models got worse
            on average. Until then all arms of a seed are the same.
        scope: `all` shared weights, or those of the `cell` only, without embedding, decoder, stem and classifier.
        reset_every: Epochs between two resets of anchors and importance; never if 0.
        strength_decay: Factor of the strengths, but not of a tolerance, from one epoch with protection to the next.
    """

    title: ClassVar[str] = "Protection"

    start: Literal["forgetting"] | int = option("forgetting", flag="protect-from")
    scope: Literal["all", "cell"] = option("all", flag="protect")
    reset_every: int = 0
    strength_decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.start, str):
            expect_one_of("protect-from", self.start, ["forgetting", "an epoch"])
        elif self.start < 0:
            raise InputError(f"Expected protect-from to be at least 0 or forgetting, but got {self.start}.")
        self.expect_at_least(0, "reset_every")
        self.expect_share("strength_decay")


@dataclass(frozen=True, kw_only=True)
class ImportanceConfig(FisherConfig):
    """What protections learn of a trained model.

    Attributes:
        source: Where the Fisher information comes from: per-example gradients on `held-out` examples, or an estimate
            from the mean gradients of the `training` batches themselves, which costs next to nothing.
        batches: Batches of the importance split per model that a held-out Fisher, and protections that ask for
            examples, are measured on; of images a batch is 1,000 there.
        fisher: Kind of the Fisher information, if held-out; see `forgetless.diagonal_fisher`.
    """

    source: Literal["held-out", "training"] = option("training", flag="importance")
    batches: int = option(2, flag="importance-batches")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(1, "batches")
        if self.source == "training" and self.fisher != "empirical":
            raise InputError(
                f"Expected importance to be held-out for fisher={self.fisher}, but got training. "
                "The estimate from training batches is that of the empirical Fisher."
            )


@dataclass(frozen=True, kw_only=True)
class RewardConfig(Part):
    """How shared weights judge architectures, for the strategy and for the selection.

    Attributes:
        score: What rewards are made of: the `error`, or the `loss`, which of images is finer, on the same held-out
            data. Of text they are the same.
        average: The weights that rewards are measured with: the newest (`none`), their mean over all batches since
            `average_from` (`tail`), or one that forgets those older than about `average_batches` batches (`moving`).
            Forgetting is measured on the newest in any case.
        average_from: First epoch, from 0, whose weights are averaged; until then rewards are measured with the
            newest. By default 0, of `tail` the middle of the search.
        average_batches: Of a `moving` average.
    """

    title: ClassVar[str] = "Reward"

    score: Literal["error", "loss"] = "error"
    average: Literal["none", "tail", "moving"] = "none"
    average_from: int = fitting()
    average_batches: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(0, "average_from")
        self.expect_at_least(1, "average_batches")

    def fitted(self, epochs: int) -> RewardConfig:
        """The same, with a first epoch if none was given.

        Args:
            epochs: Of the search.
        """
        first = epochs // 2 if self.average == "tail" else 0
        return self if self.average_from is not None else dataclasses.replace(self, average_from=first)

    @property
    def averages(self) -> bool:
        """Whether weights are averaged."""
        return self.average != "none"


@dataclass(frozen=True, kw_only=True)
class SelectionConfig(Part):
    """What a search ends with.

    Attributes:
        final_samples: Architectures from which the best is derived at the end; no derivation if 0.
        final_batches: Batches of which the derived and the random architecture are trained from scratch; as many as
            the whole search took if 0.
    """

    title: ClassVar[str] = "Selection"

    final_samples: int = 100
    final_batches: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(0, "final_samples", "final_batches")


@dataclass(frozen=True, kw_only=True)
class InterferenceConfig(Part):
    """Measurements of who overwrites whom.

    Attributes:
        every: Epochs between two measurements; never if 0.
        models: Architectures of these measurements, drawn once per seed; each is trained as in an epoch.
    """

    title: ClassVar[str] = "Interference"

    every: int = option(0, flag="interference-every")
    models: int = option(4, flag="interference-models")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(0, "every")
        self.expect_at_least(2, "models")


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Configuration):
    """What `forgetless search` is asked to do.

    What is None in a part stands for what fits the rest, and is replaced by it.

    Attributes:
        space: What is chosen from, and the supernet that holds it.
        task: Options of the task that the space's supernet learns.
        data: What is learnt.
        strategy: What proposes architectures. One that trains no shared weights (`random`) makes no epochs.
        sampling: Which architectures train the shared weights.
        protections: Arms to compare.
        protect: What is protected, and when.
        importance: What protections learn of a trained model.
        schedule: How long a search trains and learns.
        optimizer: How weights are trained.
        rates: How the learning rate of the supernet's weights changes over the search.
        reward: How shared weights judge architectures.
        selection: What a search ends with.
        interference: Measurements of who overwrites whom.
        run: Which runs are made.
        resources: Where and how they are made.
    """

    shown_contexts: ClassVar[tuple[str, ...]] = (EXPERIMENT,)
    has_presets: ClassVar[bool] = True

    space: SpaceOptions = fitting(basic=True)
    task: TaskOptions = fitting()
    data: DataConfig = DataConfig()
    strategy: StrategyOptions = fitting(basic=True)
    sampling: SamplerOptions = fitting()
    protections: tuple[ProtectionOptions, ...] = fitting(flag="protection", basic=True)
    protect: ProtectConfig = ProtectConfig()
    importance: ImportanceConfig = ImportanceConfig()
    schedule: Schedule = Schedule()
    optimizer: OptimizerConfig = OptimizerConfig()
    rates: RateConfig = RateConfig()
    reward: RewardConfig = RewardConfig()
    selection: SelectionConfig = SelectionConfig()
    interference: InterferenceConfig = InterferenceConfig()
    run: RunConfig = RunConfig()
    resources: Resources = Resources()

    def __post_init__(self) -> None:
        super().__post_init__()
        # What was asked for, before what fits takes the place of what was left out.
        object.__setattr__(
            self, "_asked", {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        )
        self._fit_parts()
        self._fit_protections()
        space = self.space.kind(self.space).space
        self.strategy.kind.expect_space(space)
        if self.trains_shared_weights:
            self.sampling.kind.expect_space(space)
        if not self.trains_shared_weights and self.selection.final_samples == 0:
            raise InputError(f"Expected final_samples of at least 1 for the strategy {self.strategy_name}, but got 0.")
        for each in self.protections:
            each.check_search(self.importance.source, self.schedule.batches_per_model)
        if (
            self.importance.source == "held-out"
            and self.importance.fisher == "exact"
            and self.space.kind.task == "text"
        ):
            raise InputError("Expected fisher to be empirical, monte_carlo or batch for text, but got exact.")

    def _fit_parts(self) -> None:
        """Defaults that depend on the space."""
        space = (SPACES["recurrent"].Options() if self.space is None else self.space).fitted()
        kind, task = space.kind, TASKS[space.kind.task]
        options = task.Options() if self.task is None else self.task
        if options.kind is not task:
            raise InputError(f"Expected options of the task {task.name}, but got those of {options.kind.name}.")
        strategy = STRATEGIES["enas"].Options() if self.strategy is None else self.strategy
        sampling = SAMPLERS["strategy"].Options() if self.sampling is None else self.sampling
        training = dict(kind.training)
        rates = training.pop("learning_rate", {})
        self._set(
            space=space,
            task=options.fitted(),
            strategy=strategy.fitted(),
            sampling=sampling.fitted(),
            data=DataConfig(name=self.data.name or task.default_data),
            optimizer=self.optimizer.fitted({"name": "sgd", **training}, rates),
            reward=self.reward.fitted(self.schedule.epochs),
            run=self.run.fitted(1),
        )
        _expect_data(self.data.name, space)

    def _fit_protections(self) -> None:
        asked = self.protections
        if asked is None:
            asked = default_protections("wpl" if self.trains_shared_weights else "none")
        self._set(protections=fitted_protections(asked, *self.contexts))
        if not self.trains_shared_weights and self.arms != ("none",):
            raise InputError(
                f"Expected no protection but none for the strategy {self.strategy_name}, which trains no shared "
                f"weights, but got {', '.join(self.arms)}."
            )

    def fitted_to(self, **changes: Any) -> SearchConfig:
        """The same with other parts; what was left out when it was made is fitted to these.

        Args:
            **changes: Field → part.
        """
        asked: dict[str, Any] = self._asked  # type: ignore[attr-defined]
        return SearchConfig(**{**asked, **changes}) if changes else self

    @property
    def contexts(self) -> tuple[str, ...]:
        """What defaults of protections depend on; see `Options.fits`."""
        task = TASKS[self.space.kind.task]
        return EXPERIMENT, *(f"{EXPERIMENT} on {name}" for name in (task.fits_like, task.name) if name)

    @property
    def space_name(self) -> str:
        """Of the space."""
        return str(self.space.kind.name)

    @property
    def strategy_name(self) -> str:
        """Of the strategy."""
        return str(self.strategy.kind.name)

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of the protections."""
        return tuple(each.kind.name for each in self.protections)

    def options_of(self, protection: str) -> ProtectionOptions:
        """The options of a protection: as asked for, or, of one that was not, what fits this search.

        Args:
            protection: Its name.

        Raises:
            InputError: If there is none of this name.
        """
        found = next((each for each in self.protections if each.kind.name == protection), None)
        return found or PROTECTIONS[protection].Options().fitted(*self.contexts)

    @property
    def trains_shared_weights(self) -> bool:
        """Whether there are shared weights at all, and so epochs, rewards and forgetting."""
        return bool(self.strategy.kind.trains_shared_weights)

    @property
    def num_epochs(self) -> int:
        """Epochs that an arm makes: `epochs`, but none without shared weights."""
        return self.schedule.epochs if self.trains_shared_weights else 0

    @property
    def num_records(self) -> int:
        """Records of a finished arm: its epochs, and the derivation if there is one."""
        return self.num_epochs + (self.selection.final_samples > 0)

    @property
    def final_batches(self) -> int:
        """Batches of a training from scratch at the end."""
        return self.selection.final_batches or self.schedule.num_batches


def _expect_data(name: str, space: SpaceOptions) -> None:
    """Refuse data by a name that another kind of task has."""
    task = TASKS[space.kind.task]
    others = [other for other in TASKS.values() if other is not task and name in other.data_sets]
    if name not in task.data_sets and others:
        raise InputError(
            f"Expected data that fits the space {space.kind.name}, but got {name!r}. Take one of "
            f"{', '.join(task.data_sets)}, or a path."
        )


@dataclass(frozen=True)
class SearchArm:
    """One search to make: a seed under one protection."""

    seed: int
    protection: str


def search_arms(config: SearchConfig) -> list[SearchArm]:
    """Every search that a configuration asks for, in the order they are made: control arms after the others.

    Args:
        config: The configuration.
    """
    order = sorted(config.arms, key=lambda name: config.options_of(name).kind.matches is not None)
    return [SearchArm(seed, name) for seed in config.run.all_seeds for name in order]
