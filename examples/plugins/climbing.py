"""A strategy of one's own: it mutates the best architecture that it has seen."""

import math
from dataclasses import dataclass

from forgetless.configuration import option
from forgetless.strategies import STRATEGIES, Strategy, StrategyOptions


@dataclass(frozen=True, kw_only=True)
class ClimbingOptions(StrategyOptions):
    restart_every: int = option(5, help="Proposals between two that are drawn uniformly, at least 1.")

    def __post_init__(self):
        super().__post_init__()
        self.expect_at_least(1, "restart_every")


@STRATEGIES.register
class Climbing(Strategy):
    """Proposes neighbours of the best so far, now and then one drawn uniformly."""

    name, Options = "climbing", ClimbingOptions
    best, reward, count = None, -math.inf, 0

    def _propose(self, n):
        self.count += n
        return [self._next(number) for number in range(self.count - n, self.count)]

    def _next(self, number):
        if self.best is None or number % self.options.restart_every == 0:
            return self.space.sample(self.generator)
        return self.space.mutate(self.best, self.generator)

    def _learn(self, architectures, rewards):
        for architecture, reward in zip(architectures, rewards, strict=True):
            if reward > self.reward:  # what diverged, NaN, is never larger
                self.best, self.reward = architecture, reward
        return {"climbed_to": self.reward}

    def state_dict(self):
        return super().state_dict() | {"best": str(self.best or ""), "reward": self.reward, "count": self.count}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.best = self.space.parse(state["best"]) if state["best"] else None
        self.reward, self.count = state["reward"], state["count"]
