"""Regularised evolution: a queue of architectures, of which the oldest dies however good it is."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from forgetless.errors import InputError
from forgetless.spaces.base import A
from forgetless.strategies.base import STRATEGIES, Strategy, StrategyOptions


@dataclass(frozen=True, kw_only=True)
class EvolutionOptions(StrategyOptions):
    """Sizes of regularised evolution.

    Attributes:
        population_size: P, at least 1. Paper: 100, of 20,000 architectures. A search on two cores measures some
            hundred, and their rewards grow old while the shared weights move.
        tournament_size: S, at least 1, drawn with replacement. Paper: 25, a quarter of P.

    Raises:
        InputError: If a size is below 1.

    >>> EvolutionOptions(tournament_size=0)
    Traceback (most recent call last):
    forgetless.errors.InputError: Expected tournament_size to be at least 1, but got 0. 1 does not select at all.
    """

    population_size: int = 50
    tournament_size: int = 12

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, hint in (
            ("population_size", "The paper uses 100."),
            ("tournament_size", "1 does not select at all."),
        ):
            if getattr(self, name) < 1:
                raise InputError(f"Expected {name} to be at least 1, but got {getattr(self, name)}. {hint}")


@STRATEGIES.register
class EvolutionStrategy(Strategy[A]):
    """Mutates the best of a few members of a population whose members all die of old age.

    Source: Real, Aggarwal, Huang, Le, *Regularized Evolution for Image Classifier Architecture Search*, AAAI 2019,
    arXiv:1802.01548, algorithm 1. The population is a queue of at most P pairs (architecture, reward):

        propose:  uniform while the queue has fewer than P; then the best of S drawn from it with replacement, mutated
        learn:    append (a, R(a)) for each architecture; drop the oldest while there are more than P

    Ageing suits shared weights: a reward that was measured long ago was measured on other weights, and goes.

    Differences: n children of one call come from the same population, as from n workers of the paper. A mutation
    changes one decision (`Space.mutate`); the paper changes an operation or an input of a cell, or nothing. The paper
    selects the best architecture ever seen; rewards from different times are not comparable here, so that
    `propose_final` gives the living, the youngest first and each once, then new children, for the search to measure
    all of them on the same weights.

    The rule for a diverged architecture, whose reward is not finite: it lives and ages like any other, but loses every
    tournament against one that did not diverge. Of equals, the first drawn wins.

    Args:
        space: What to choose from; one of a single architecture has nothing to mutate and proposes that.
        seed: Of the generator.
        options: Sizes.

    Attributes:
        population: (architecture, reward) from the oldest to the youngest; −∞ where it diverged.

    >>> from forgetless.spaces.recurrent import RecurrentSpace
    >>> options = EvolutionOptions(population_size=10, tournament_size=4)
    >>> strategy = EvolutionStrategy(RecurrentSpace(4), options=options)
    >>> for _ in range(20):  # the more ReLUs, the better
    ...     cells = strategy.propose(5)
    ...     metrics = strategy.learn(cells, [str(cell).count("relu") / 4 for cell in cells])
    >>> metrics["mean_reward"] > 0.6
    True
    """

    name: ClassVar[str] = "evolution"
    Options: ClassVar[type[StrategyOptions]] = EvolutionOptions
    measured: ClassVar[Mapping[str, str]] = {
        "population_best": "(reward) The greatest reward of the living after a call, as they were measured, those that "
        "diverged left out.",
        "population_mean": "(reward) Their mean reward.",
    }
    options: EvolutionOptions

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.population: deque[tuple[A, float]] = deque(maxlen=self.options.population_size)

    def _propose(self, n: int) -> list[A]:
        return [self._child() for _ in range(n)]

    def _child(self) -> A:
        if len(self.population) < self.options.population_size or self.space.size == 1:
            return self.space.sample(self.generator)
        import torch

        drawn = torch.randint(len(self.population), (self.options.tournament_size,), generator=self.generator)
        parent, _ = max((self.population[i] for i in drawn.tolist()), key=lambda member: member[1])
        return self.space.mutate(parent, self.generator)

    def _propose_final(self, n: int) -> list[A]:
        living = list(dict.fromkeys(architecture for architecture, _ in reversed(self.population)))[:n]
        return living + self._propose(n - len(living))

    def _learn(self, architectures: Sequence[A], rewards: list[float]) -> dict[str, float]:
        """Metrics: `population_best` and `population_mean`, over the living that did not diverge; none without any."""
        for architecture, reward in zip(architectures, rewards, strict=True):
            self.space.encode(architecture)  # refuses strangers
            self.population.append((architecture, reward if math.isfinite(reward) else -math.inf))
        finite = [reward for _, reward in self.population if reward > -math.inf]
        if not finite:
            return {}
        return {"population_best": max(finite), "population_mean": math.fsum(finite) / len(finite)}

    def state_dict(self) -> dict[str, Any]:
        """Space, generator, options and population, copied."""
        members = [[list(self.space.encode(architecture)), reward] for architecture, reward in self.population]
        return super().state_dict() | {"population": members}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: From `state_dict`.
        """
        super().load_state_dict(state)
        self.population.clear()
        self.population.extend((self.space.decode(decisions), reward) for decisions, reward in state["population"])
