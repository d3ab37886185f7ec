"""Each architecture differs from the one trained before it in one decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from forgetless.sampling.base import SAMPLERS, Sampler, SamplerOptions
from forgetless.spaces.base import A


@dataclass(frozen=True, kw_only=True)
class AdjacentSamplerOptions(SamplerOptions):
    """Adjacent sampling has no options."""


@SAMPLERS.register
class AdjacentSampler(Sampler[A]):
    """Trains neighbours: one decision, drawn uniformly, changes to another option from one architecture to the next.

    The first is drawn uniformly. Neighbours use nearly the same path, so that what the last one trained is overwritten
    by one that wants about the same.

    Source: MAGIC-T of Xu et al. 2022 (Analyzing and Mitigating Interference in Neural Architecture Search,
    arXiv:2108.12821). A decision may be where a node reads, too; theirs are operations alone.
    """

    name: ClassVar[str] = "adjacent"
    Options: ClassVar[type[SamplerOptions]] = AdjacentSamplerOptions
    _last: A | None = None

    def next(self) -> A:
        """A neighbour of the last one; in a space of one, that one."""
        if self._last is None or self.space.size == 1:
            self._last = self.space.sample(self.generator)
        else:
            self._last = self.space.mutate(self._last, self.generator)
        return self._last

    def state_dict(self) -> dict[str, Any]:
        """The generator, and the last architecture."""
        return super().state_dict() | {"last": None if self._last is None else str(self._last)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: From `state_dict`.
        """
        super().load_state_dict(state)
        self._last = None if state["last"] is None else self.space.parse(state["last"])
