"""No search: architectures drawn uniformly, untouched by any shared weights. What every search must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forgetless.spaces.base import A
from forgetless.strategies.base import STRATEGIES, StrategyOptions
from forgetless.strategies.uniform import UniformStrategy


@dataclass(frozen=True, kw_only=True)
class RandomOptions(StrategyOptions):
    """Drawing at random has no options."""


@STRATEGIES.register
class RandomStrategy(UniformStrategy[A]):
    """Selects architectures in the order in which they were drawn.

    Source: the baseline of Yu et al., Evaluating the Search Phase of NAS, ICLR 2020, arXiv:1902.08142. No shared
    weights are trained and no rewards are measured: a search of it makes no epoch and takes no time. `uniform` draws
    in the same way, but ranks what it has drawn by shared weights.

    >>> from forgetless.spaces.recurrent import RecurrentSpace
    >>> [str(architecture) for architecture in RandomStrategy(RecurrentSpace(2), seed=3).propose_final(2)]
    ['tanh(0) sigmoid(1)', 'tanh(0) relu(0)']
    """

    name: ClassVar[str] = "random"
    Options: ClassVar[type[StrategyOptions]] = RandomOptions
    trains_shared_weights: ClassVar[bool] = False
