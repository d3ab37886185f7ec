"""Strict fairness: every option of a decision trains equally often, at any time but for one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from forgetless.sampling.base import SAMPLERS, Sampler, SamplerOptions
from forgetless.spaces.base import A


@dataclass(frozen=True, kw_only=True)
class FairSamplerOptions(SamplerOptions):
    """Fair sampling has no options."""


@SAMPLERS.register
class FairSampler(Sampler[A]):
    """Goes through the options of each decision in shuffled order, each once before any comes again.

    After k architectures an option of a decision with n options has trained ⌊k/n⌋ or ⌈k/n⌉ times. Uniform draws come to
    that on average only.

    Source: FairNAS of Chu et al. 2021, arXiv:1907.01845, algorithm 1. There, the n models of one round add up their
    gradients on one batch for one step; here each trains for its own batches, one after the other. Decisions may have
    different numbers of options here, and then finish their rounds at different times.
    """

    name: ClassVar[str] = "fair"
    Options: ClassVar[type[SamplerOptions]] = FairSamplerOptions

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._left: list[list[int]] = [[] for _ in self.space.num_choices]

    def next(self) -> A:
        """The next option of each decision."""
        import torch

        for left, options in zip(self._left, self.space.num_choices, strict=True):
            if not left:
                left.extend(torch.randperm(options, generator=self.generator).tolist())
        return self.space.decode([left.pop() for left in self._left])

    def state_dict(self) -> dict[str, Any]:
        """The generator, and what is left of each decision's round."""
        return super().state_dict() | {"left": [list(left) for left in self._left]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: From `state_dict`.
        """
        super().load_state_dict(state)
        self._left = [list(left) for left in state["left"]]
