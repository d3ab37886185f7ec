"""The sandwich rule: the largest, the smallest, and random architectures in turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from forgetless.errors import InputError
from forgetless.sampling.base import SAMPLERS, Sampler, SamplerOptions
from forgetless.spaces.base import A, Space


@dataclass(frozen=True, kw_only=True)
class SandwichSamplerOptions(SamplerOptions):
    """Options of the sandwich rule.

    Attributes:
        random: Architectures drawn uniformly after each largest and smallest one.
    """

    random: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(0, "random")


@SAMPLERS.register
class SandwichSampler(Sampler[A]):
    """Trains rounds of the largest architecture, the smallest one, and some drawn uniformly.

    For spaces whose decisions are sizes, where all others lie between these two (`Space.orders_sizes`).

    Source: Yu and Huang 2019 (universally slimmable networks), arXiv:1903.05134, section 3.2, who take n = 4 in all.
    There, the models of a round add up their gradients for one step, and the smaller ones learn from the largest one's
    outputs; here each trains for its own batches on the labels.
    """

    name: ClassVar[str] = "sandwich"
    Options: ClassVar[type[SamplerOptions]] = SandwichSamplerOptions
    options: SandwichSamplerOptions
    _place = 0

    @classmethod
    def expect_space(cls, space: Space[Any]) -> None:
        """Refuse a space whose decisions are not sizes.

        Args:
            space: What to choose from.

        Raises:
            InputError: If it is one.
        """
        if not space.orders_sizes:
            raise InputError(
                f"Expected a space whose options are sizes, smallest first, for the sampler sandwich, but got {space}. "
                "Take another sampler."
            )

    def next(self) -> A:
        """The next of the round."""
        place, self._place = self._place, (self._place + 1) % (2 + self.options.random)
        if place == 0:
            return self.space.decode([options - 1 for options in self.space.num_choices])
        return self.space.decode([0] * len(self.space.num_choices)) if place == 1 else self.space.sample(self.generator)

    def state_dict(self) -> dict[str, Any]:
        """The generator, and the place in the round."""
        return super().state_dict() | {"place": self._place}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: From `state_dict`.
        """
        super().load_state_dict(state)
        self._place = state["place"]
