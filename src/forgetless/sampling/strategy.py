"""The strategy's own proposals train, as in ENAS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forgetless.sampling.base import SAMPLERS, Sampler, SamplerOptions
from forgetless.spaces.base import A


@dataclass(frozen=True, kw_only=True)
class StrategySamplerOptions(SamplerOptions):
    """What the strategy proposes has no options here."""


@SAMPLERS.register
class StrategySampler(Sampler[A]):
    """Trains what the strategy proposes, so that promising architectures train most.

    Source: Pham et al. 2018, arXiv:1802.03268, section 2.2.
    """

    name: ClassVar[str] = "strategy"
    Options: ClassVar[type[SamplerOptions]] = StrategySamplerOptions

    def next(self) -> A:
        """The strategy's next proposal."""
        return self.propose()
