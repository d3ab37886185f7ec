"""What `forgetless landscape` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forgetless.configuration import Configuration, Part, fitting, option
from forgetless.errors import InputError
from forgetless.experiments.two_model.config import EXPERIMENT as TWO_MODEL
from forgetless.experiments.two_model.config import (
    ActivationName,
    Arm,
    ChainConfig,
    ChainSchedule,
    TwoModelConfig,
    Wiring,
    arms,
)
from forgetless.parts import (
    DataConfig,
    FisherConfig,
    OptimizerConfig,
    Resources,
    RunConfig,
    default_protections,
    fitted_protections,
)
from forgetless.protection import ProtectionOptions

EXPERIMENT = "landscape"


@dataclass(frozen=True, kw_only=True)
class PairConfig(Part):
    """The two models, and what they share.

    Attributes:
        wiring: How B reuses A's hidden layers: `prefix` or `crossed`.
        shared: How many of A's hidden layers are shared.
        convergence: A is stopped when its validation accuracy passes this share of what it reaches, in (0, 1].
        width: Units per hidden layer.
        activation: Of the hidden layers.
    """

    title: ClassVar[str] = "Models"

    wiring: Wiring = option(Wiring.CROSSED, basic=True)
    shared: int = option(3, basic=True)
    convergence: float = option(1.0, basic=True)
    width: int = 100
    activation: ActivationName = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.chain  # which checks them

    @property
    def chain(self) -> ChainConfig:
        """The same as a chain of two models."""
        return ChainConfig(
            wiring=self.wiring,
            shared=(self.shared,),
            convergence=(self.convergence,),
            width=self.width,
            activation=self.activation,
        )


@dataclass(frozen=True, kw_only=True)
class PathSchedule(ChainSchedule):
    """How long the models train, and how often the path has a point.

    Attributes:
        evaluate_every: Steps between two points of a path. The first interval, in which most is lost, has points at its
            eighth, quarter and half too.
    """

    evaluate_every: int = 50


@dataclass(frozen=True, kw_only=True)
class SliceConfig(Part):
    """The plane, and what is measured on it.

    Attributes:
        points: Points of the grid in each direction, at least 2.
        rise: The ellipse is where the Fisher information expects A's loss to have risen by so much, in nats.
        images: Losses are measured on the first so many validation images.
    """

    title: ClassVar[str] = "Slice"

    points: int = option(31, basic=True)
    rise: float = option(0.1, basic=True)
    images: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(2, "points")
        self.expect_at_least(1, "images")
        self.expect_at_most(1000, "points")
        self.expect_positive("rise")


@dataclass(frozen=True, kw_only=True)
class LandscapeConfig(Configuration):
    """What `forgetless landscape` is asked to do.

    Attributes:
        data: Labelled images.
        pair: The two models, and what they share.
        protections: Arms, at least two. The plane goes through the ends of the first and the last.
        importance: What protections learn of a trained model.
        schedule: How long the models train.
        slice: The plane, and what is measured on it.
        optimizer: How both models train.
        run: Which runs are made.
        resources: Where and how they are made.
    """

    shown_contexts: ClassVar[tuple[str, ...]] = (TWO_MODEL, EXPERIMENT)
    several_strengths: ClassVar[bool] = True

    data: DataConfig = DataConfig()
    pair: PairConfig = PairConfig()
    protections: tuple[ProtectionOptions, ...] = fitting(flag="protection", basic=True)
    importance: FisherConfig = FisherConfig()
    schedule: PathSchedule = PathSchedule()
    slice: SliceConfig = SliceConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()
    resources: Resources = Resources()

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = default_protections("none", "ewc", "wpl") if self.protections is None else self.protections
        fitted = fitted_protections(asked, TWO_MODEL, f"{TWO_MODEL} on images", EXPERIMENT, several_strengths=True)
        if len(fitted) < 2:
            raise InputError("Expected at least two protections, whose ends the plane goes through, but got one.")
        if controls := [each.kind.name for each in fitted if each.kind.matches is not None]:
            raise InputError(
                f"Expected arms that train B once, but {controls[0]} tries several learning rates. Leave it out."
            )
        self._set(protections=fitted, run=self.run.fitted(3))
        two = self.two_models
        self._set(data=two.data, optimizer=two.optimizer)

    @property
    def two_models(self) -> TwoModelConfig:
        """The two-model experiment that makes the same trainings."""
        return TwoModelConfig(
            data=self.data,
            chain=self.pair.chain,
            protections=self.protections,
            importance=self.importance,
            schedule=self.schedule,
            optimizer=self.optimizer,
            run=self.run,
            resources=self.resources,
        )

    @property
    def arms(self) -> list[Arm]:
        """Every training of B, by seed."""
        return arms(self.two_models)
