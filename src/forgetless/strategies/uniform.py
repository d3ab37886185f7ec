"""Uniform sampling: every architecture is proposed with probability 1/size, whatever the rewards were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from forgetless.spaces.base import A
from forgetless.strategies.base import STRATEGIES, Strategy, StrategyOptions


@dataclass(frozen=True, kw_only=True)
class UniformOptions(StrategyOptions):
    """Uniform sampling has no options."""


@STRATEGIES.register
class UniformStrategy(Strategy[A]):
    """Random search with shared weights: what any learning strategy has to beat.

    Source: Li and Talwalkar, Random Search and Reproducibility for NAS, UAI 2019, arXiv:1902.07638. Architectures are
    drawn with replacement. `learn` only reports; a reward that is not finite is counted and no more.

    >>> from forgetless.spaces.recurrent import RecurrentSpace
    >>> strategy = UniformStrategy(RecurrentSpace(2), seed=3)
    >>> [str(architecture) for architecture in strategy.propose(2)]
    ['tanh(0) sigmoid(1)', 'tanh(0) relu(0)']
    >>> strategy.learn(strategy.propose(3), [0.5, 0.7, float("nan")])
    {'num_diverged': 1.0, 'mean_reward': 0.6, 'best_reward': 0.7}
    """

    name: ClassVar[str] = "uniform"
    Options: ClassVar[type[StrategyOptions]] = UniformOptions

    def _propose(self, n: int) -> list[A]:
        return [self.space.sample(self.generator) for _ in range(n)]

    def _learn(self, architectures: Sequence[A], rewards: list[float]) -> dict[str, float]:  # noqa: ARG002
        return {}
