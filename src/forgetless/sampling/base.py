"""What every sampler offers: the next architecture to train."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from forgetless.configuration import Options
from forgetless.registry import Kind, Registry
from forgetless.spaces.base import A, Space

if TYPE_CHECKING:
    import torch

SAMPLERS: Registry[type[Sampler[Any]]] = Registry("sampler", "forgetless.sampling")
"""Every sampler, by name."""


@dataclass(frozen=True, kw_only=True)
class SamplerOptions(Options):
    """Options of a sampler; those of one without any."""

    registry: ClassVar[Registry[Any]] = SAMPLERS


class Sampler(Kind, ABC, Generic[A]):
    """Chooses which architecture trains the shared weights next.

    What the strategy learns from, and what is selected at the end, is the strategy's own choice; a sampler decides
    only about training. Continued from a `state_dict`, it chooses what it would have without the interruption.

    Args:
        space: What to choose from.
        propose: Asks the search's strategy for an architecture.
        generator: Its source of randomness, on the CPU.
        options: Of this sampler; its defaults if None.

    Attributes:
        name: What commands and files call it.
        Options: The class of its options.
    """

    name: ClassVar[str]
    Options: ClassVar[type[SamplerOptions]]

    def __init__(
        self,
        space: Space[A],
        propose: Callable[[], A],
        generator: torch.Generator,
        options: SamplerOptions | None = None,
    ) -> None:
        self.expect_space(space)
        self.space, self.propose, self.generator = space, propose, generator
        self.options = (self.Options() if options is None else options).fitted()

    @classmethod
    def expect_space(cls, space: Space[Any]) -> None:
        """Refuse a space that this sampler cannot sample; most can sample any.

        Args:
            space: What to choose from.

        Raises:
            InputError: If it cannot.
        """

    @abstractmethod
    def next(self) -> A:
        """The architecture to train next, a member of the space."""

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything needed to go on later; `torch.load` reads it with `weights_only=True`."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, for the same space and options.

        Args:
            state: From `state_dict`.
        """
        self.generator.set_state(state["generator"].cpu())
