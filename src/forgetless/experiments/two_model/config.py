"""What `forgetless two-model` is asked to do, and the runs that this makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Literal

from forgetless.configuration import Configuration, Part, fitting, option
from forgetless.errors import InputError
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

EXPERIMENT = "two-model"

_RATES: Mapping[str, float] = {"sgd": 0.1, "adam": 0.005, "adamw": 0.005}


class Wiring(StrEnum):
    """How B and later models reuse A's hidden layers."""

    PREFIX = "prefix"
    CROSSED = "crossed"


# A has 4 hidden layers; crosswise, its first cannot be shared because it reads the pixels.
MOST_SHARED = {Wiring.PREFIX: 4, Wiring.CROSSED: 3}
"""The most hidden layers that can be shared."""

ActivationName = Literal["relu", "sigmoid", "tanh", "gelu"]


@dataclass(frozen=True, kw_only=True)
class ChainConfig(Part):
    """The models, and what they share.

    Attributes:
        wiring: How B reuses A's hidden layers: `prefix` or `crossed`.
        shared: How many of A's hidden layers are shared; several give several panels.
        convergence: A is stopped when its validation accuracy passes this share of what it reaches, in (0, 1].
        models: How many models in all, at least 2; the third and later ones share with A and with B.
        width: Units per hidden layer.
        activation: Of the hidden layers.
    """

    title: ClassVar[str] = "Models"

    wiring: Wiring = option(Wiring.CROSSED, basic=True)
    shared: tuple[int, ...] = option((3,), basic=True)
    convergence: tuple[float, ...] = option((1.0,), basic=True)
    models: int = option(2, basic=True)
    width: int = 100
    activation: ActivationName = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("shared", "convergence"):
            values = tuple(dict.fromkeys(getattr(self, name)))
            if not values:
                raise InputError(f"Expected at least one value of {name}, but got none.")
            self._set(**{name: values})
        for k in self.shared:
            if not 1 <= k <= MOST_SHARED[self.wiring]:
                raise InputError(
                    f"Expected shared between 1 and {MOST_SHARED[self.wiring]} for {self.wiring} wiring, but got {k}. "
                    "A has 4 hidden layers; crosswise, its first cannot be shared because it reads the pixels."
                )
        for share in self.convergence:
            if not 0 < share <= 1:
                raise InputError(f"Expected convergence in (0, 1], but got {share}. 1 trains A to the end.")
        self.expect_at_least(2, "models")
        self.expect_at_least(1, "width")


@dataclass(frozen=True, kw_only=True)
class ChainSchedule(Part):
    """How long the models train.

    Attributes:
        iterations: Training steps of B, and of each later model.
        iterations_a: Training steps of A to convergence.
        batch_size: Examples per step.
        evaluate_every: Steps between two points of the curves. The first interval, in which most is lost, has points
            at its eighth, quarter and half too.
    """

    title: ClassVar[str] = "Schedule"

    iterations: int = option(1500, basic=True)
    iterations_a: int = option(3000, basic=True)
    batch_size: int = 128
    evaluate_every: int = 75

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(1, "iterations", "iterations_a", "batch_size", "evaluate_every")


@dataclass(frozen=True, kw_only=True)
class TwoModelConfig(Configuration):
    """What `forgetless two-model` is asked to do.

    Attributes:
        data: Labelled images.
        chain: The models, and what they share.
        protections: Arms to compare; one protection may come with several strengths, each of which is an arm.
        importance: What protections learn of a trained model.
        schedule: How long the models train.
        optimizer: How every model trains.
        run: Which runs are made.
        resources: Where and how they are made.
    """

    shown_contexts: ClassVar[tuple[str, ...]] = (EXPERIMENT,)
    several_strengths: ClassVar[bool] = True

    data: DataConfig = DataConfig()
    chain: ChainConfig = ChainConfig()
    protections: tuple[ProtectionOptions, ...] = fitting(flag="protection", basic=True)
    importance: FisherConfig = FisherConfig()
    schedule: ChainSchedule = ChainSchedule()
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()
    resources: Resources = Resources()

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = self.protections
        if asked is None:
            asked = default_protections("none", "matched-lr", "freeze", "l2", "wpl")
        self._set(
            data=DataConfig(name=self.data.name or "digits"),
            optimizer=self.optimizer.fitted({"name": "adam", "momentum": 0.9}, _RATES),
            protections=fitted_protections(asked, EXPERIMENT, f"{EXPERIMENT} on images", several_strengths=True),
            run=self.run.fitted(5),
        )

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of the protections, each once."""
        return tuple(dict.fromkeys(each.kind.name for each in self.protections))

    def options_of(self, protection: str, strength: float | None) -> ProtectionOptions:
        """The options of one of its protections, at one of its strengths.

        Args:
            protection: Its name.
            strength: Its strength; of a control arm, that of what it is matched to.
        """
        is_matched = PROTECTIONS[protection].matches is not None
        return next(
            each
            for each in self.protections
            if each.kind.name == protection and (is_matched or each.strength_or_none == strength)
        )


@dataclass(frozen=True)
class Arm:
    """One run to make: B (and later models) trained from one state of A under one protection."""

    seed: int
    shared: int
    convergence: float
    protection: str
    strength: float | None

    @property
    def label(self) -> str:
        """For a progress line, such as `wpl α=1e+05`."""
        if self.strength is None:
            return self.protection
        kind = PROTECTIONS[self.protection]
        return f"{self.protection} {PROTECTIONS[kind.matches or kind.name].symbol}={self.strength:g}"

    @property
    def told(self) -> str:
        """In words."""
        return f"{self.label}, seed {self.seed}, {self.shared} shared layers, convergence {self.convergence}"


def arms(config: TwoModelConfig) -> list[Arm]:
    """Every run that a configuration asks for, in the order they are made.

    Args:
        config: The configuration.

    Returns:
        The arms: by seed, shared layers and convergence; within these, the control arm after the arm it is matched to.
    """

    def strengths(protection: str) -> list[float | None]:
        name = PROTECTIONS[protection].matches or protection
        return [each.strength_or_none for each in config.protections if each.kind.name == name]

    order = sorted(config.arms, key=lambda protection: PROTECTIONS[protection].matches is not None)
    return [
        Arm(seed, shared, convergence, protection, strength)
        for seed in config.run.all_seeds
        for shared in config.chain.shared
        for convergence in config.chain.convergence
        for protection in order
        for strength in strengths(protection)
    ]
