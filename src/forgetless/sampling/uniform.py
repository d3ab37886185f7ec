"""Every architecture trains with the same probability, whatever the strategy has learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forgetless.sampling.base import SAMPLERS, Sampler, SamplerOptions
from forgetless.spaces.base import A


@dataclass(frozen=True, kw_only=True)
class UniformSamplerOptions(SamplerOptions):
    """Uniform sampling has no options."""


@SAMPLERS.register
class UniformSampler(Sampler[A]):
    """Trains architectures drawn uniformly: every notation with probability 1/size.

    Source: Guo et al. 2020 (single path one-shot), arXiv:1904.00420, section 3.3.
    """

    name: ClassVar[str] = "uniform"
    Options: ClassVar[type[SamplerOptions]] = UniformSamplerOptions

    def next(self) -> A:
        """A uniform draw."""
        return self.space.sample(self.generator)
