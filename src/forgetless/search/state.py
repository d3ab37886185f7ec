"""What a search has come to within an epoch, and within its derivation: enough to go on from there."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from forgetless.forgetting import ForgettingMeter, ForgettingSummary


class Moved(NamedTuple):
    """How far one model's training moved the shared weights, per batch.

    Attributes:
        step: Mean length of its steps.
        net: Distance from before its training to after its consolidation, divided by its batches.
    """

    step: float
    net: float


@dataclass
class EpochState:
    """An epoch so far.

    Attributes:
        architectures: Those that are trained, in order.
        first: Their err₁.
        consolidated: Their errors after the consolidation.
        second: err₂ of the first of them; empty until all are trained.
        moved: How far each moved the shared weights.
        num_passed_over: Batches that were skipped because a gradient was not finite.
        penalty: At the end of training; None until then.
        part: The multi-model part, NaN where it is not measured in this epoch; None until its turn.
        learned: Metrics of the strategy's steps.
        seconds: Wall seconds by phase.
    """

    architectures: list[Any] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    consolidated: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)
    moved: list[Moved] = field(default_factory=list)
    num_passed_over: int = 0
    penalty: float | None = None
    part: float | None = None
    learned: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def forgetting(self, diverged_above: float) -> ForgettingSummary:
        """Of the models that have both errors.

        Args:
            diverged_above: As for `ForgettingMeter`.
        """
        meter = ForgettingMeter(diverged_above)
        for j, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            meter.record(j, first)
            meter.revisit(j, second)
        return meter.summary()

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {
            **values,
            "architectures": list(map(str, self.architectures)),
            "moved": [list(each) for each in self.moved],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], parse: Callable[[str], Any]) -> "EpochState":
        """What `as_dict` gave.

        Args:
            values: From `as_dict`.
            parse: Reads an architecture as its space prints it.
        """
        architectures = [parse(text) for text in values["architectures"]]
        return cls(**{**values, "architectures": architectures, "moved": [Moved(*each) for each in values["moved"]]})


@dataclass
class DerivationState:
    """A derivation so far.

    Attributes:
        proposed: The architectures to choose from.
        rewards: Of those that are measured.
        trained: What was found by training from scratch, `derived` and `random`.
        training: Makes the state of a training from scratch that is under way, or gives it back.
        random_state: The random state outside of such a training.
        seconds: Wall seconds.
    """

    proposed: list[Any]
    rewards: dict[Any, float] = field(default_factory=dict)
    trained: dict[str, dict[str, float | None]] = field(default_factory=dict)
    training: Callable[[], dict[str, Any]] | None = None
    random_state: Tensor | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "proposed": list(map(str, self.proposed)),
            "rewards": [[str(architecture), reward] for architecture, reward in self.rewards.items()],
            "trained": self.trained,
            "training": None if self.training is None else self.training(),
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], parse: Callable[[str], Any]) -> "DerivationState":
        """What `as_dict` gave.

        Args:
            values: From `as_dict`.
            parse: Reads an architecture as its space prints it.
        """
        begun = values["training"]
        return cls(
            proposed=[parse(text) for text in values["proposed"]],
            rewards={parse(text): reward for text, reward in values["rewards"]},
            trained=values["trained"],
            training=None if begun is None else lambda: begun,
            seconds=values["seconds"],
        )
