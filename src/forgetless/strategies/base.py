"""What every search strategy offers: proposals, and learning from how good they were."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from forgetless.configuration import Options
from forgetless.errors import InputError
from forgetless.registry import Kind, Registry
from forgetless.spaces.base import A, Space

if TYPE_CHECKING:
    from torch import Tensor

STRATEGIES: Registry[type[Strategy[Any]]] = Registry("strategy", "forgetless.strategies")
"""Every search strategy, by name."""


@dataclass(frozen=True, kw_only=True)
class StrategyOptions(Options):
    """Options of a search strategy; those of one without any."""

    registry: ClassVar[Registry[Any]] = STRATEGIES


class Strategy(Kind, ABC, Generic[A]):
    """Chooses which architectures of a space to try next.

    A search calls `propose` for architectures, measures how good they are, and hands the rewards to `learn`; at its
    end it calls `propose_final`. Nothing else is asked of a strategy. It draws with its own generator, on the CPU, so
    that neither the device nor the global random state changes what it proposes. Continued from a `state_dict`, it
    proposes and learns what it would have without the interruption, bit for bit.

    What it asks of the search is in class attributes. One that `uses_gradients` finds in `loss`, whenever it
    learns, a function of an architecture and of a weight for each of its edges; the search sets it. One that does not
    train shared weights is asked for `propose_final` alone, and there are no rewards.

    A reward that is not finite means that the architecture diverged. It is counted (`num_diverged`) and left out of
    every average; how else it is learnt from is each strategy's rule, stated in its docstring.

    Args:
        space: What to choose from.
        seed: Of the strategy's generator, and so of its initial weights.
        options: Of this strategy; its defaults if None.
        num_steps: How many calls of `learn` there will be, for strategies that anneal.

    Attributes:
        name: What commands and files call it.
        Options: The class of its options.
        uses_gradients: See above.
        trains_shared_weights: See above.
        measured: What `learn` of this class tells, beside what that of its bases does: key → its unit in parentheses,
            and what it is. An epoch's record has the mean over its calls, as `strategy_` and the key.
        space: What is chosen from.
        generator: The strategy's own source of randomness, on the CPU.
        loss: (architecture, weights of its edges) → mean loss on held-out data that rewards come from, differentiable
            in the weights; None unless the strategy uses gradients.
    """

    name: ClassVar[str]
    Options: ClassVar[type[StrategyOptions]]
    uses_gradients: ClassVar[bool] = False
    trains_shared_weights: ClassVar[bool] = True
    measured: ClassVar[Mapping[str, str]] = {
        "mean_reward": "(reward) Mean of the finite rewards of what the strategy proposed in a call of `learn`. "
        "Missing if none was finite.",
        "best_reward": "(reward) The greatest reward of a call.",
        "num_diverged": "(count) Proposals of a call whose reward is not finite.",
    }

    def __init__(
        self, space: Space[A], seed: int = 0, options: StrategyOptions | None = None, *, num_steps: int = 50
    ) -> None:
        import torch

        self.expect_space(space)
        self.space = space
        self.options = (self.Options() if options is None else options).fitted()
        self.num_learning_steps = num_steps
        self.generator = torch.Generator().manual_seed(seed)
        self.loss: Callable[[A, Tensor], Tensor] | None = None

    @classmethod
    def expect_space(cls, space: Space[Any]) -> None:
        """Refuse a space that the strategy cannot search; most can search any.

        Args:
            space: What to choose from.

        Raises:
            InputError: If it cannot.
        """

    def propose(self, n: int) -> list[A]:
        """Draw the next architectures to try.

        Args:
            n: How many, at least 1. They need not differ.

        Returns:
            n members of the space.

        Raises:
            InputError: If n is below 1.
        """
        _expect_some(n)
        return self._propose(n)

    def propose_final(self, n: int) -> list[A]:
        """Architectures of which the search selects the best, once all is learnt.

        Args:
            n: How many, at least 1. They need not differ.

        Returns:
            n members of the space: as `propose`, unless the strategy says otherwise.

        Raises:
            InputError: If n is below 1.
        """
        _expect_some(n)
        return self._propose_final(n)

    def learn(self, architectures: Sequence[A], rewards: Sequence[float]) -> dict[str, float]:
        """Take in how good architectures were.

        Args:
            architectures: Any members of the space, as a rule those that `propose` gave. One may occur several times.
            rewards: One per architecture, larger is better; not finite where the architecture diverged.

        Returns:
            Metrics: `mean_reward` and `best_reward` over the finite rewards (absent if there is none), `num_diverged`,
            and what else the strategy has to tell.

        Raises:
            InputError: If there is no architecture, or there are not as many rewards.
        """
        if len(architectures) != len(rewards):
            raise InputError(
                f"Expected one reward per architecture, but got {len(rewards)} for {len(architectures)}. Give the "
                "rewards in the order of the architectures."
            )
        if not architectures:
            raise InputError("Expected at least 1 architecture to learn from, but got none. Propose some first.")
        rewards = [float(reward) for reward in rewards]
        finite = [reward for reward in rewards if math.isfinite(reward)]
        metrics = {"num_diverged": float(len(rewards) - len(finite))}
        if finite:
            metrics |= {"mean_reward": math.fsum(finite) / len(finite), "best_reward": max(finite)}
        return metrics | self._learn(architectures, rewards)

    @abstractmethod
    def _propose(self, n: int) -> list[A]:
        """Draw n ≥ 1 architectures."""

    def _propose_final(self, n: int) -> list[A]:
        """Choose n ≥ 1 architectures for the end."""
        return self._propose(n)

    @abstractmethod
    def _learn(self, architectures: Sequence[A], rewards: list[float]) -> dict[str, float]:
        """Learn from at least one architecture; return the strategy's own metrics."""

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything needed to go on later; `torch.load` reads it with `weights_only=True`.

        Returns:
            The space in words, the options, the generator's state, and what the strategy has learnt.
        """
        options = dataclasses.asdict(self.options)
        return {"space": str(self.space), "generator": self.generator.get_state(), "options": options}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, for the same space and options. `state` stays as it is.

        Args:
            state: From `state_dict`.

        Raises:
            InputError: If it was saved for another space or with other options; the message says which.
        """
        _expect_same_options(dataclasses.asdict(self.options), state["options"])
        if state["space"] != str(self.space):
            raise InputError(
                f"Expected the state of a strategy for {self.space}, but got one for {state['space']}. Load it into "
                "a strategy for that space."
            )
        self.generator.set_state(state["generator"].cpu())


def _expect_same_options(mine: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Refuse a state that was saved with other options, and say which.

    Args:
        mine: Option → value here.
        saved: Option → value in the state.

    Raises:
        InputError: If one differs.
    """
    differences = [
        f"{name}={value} (here {mine.get(name)})" for name, value in saved.items() if value != mine.get(name)
    ]
    if differences:
        raise InputError(
            f"Expected the state of a strategy with the same options, but got {', '.join(differences)}. Load it into "
            "a strategy with the options it was saved with."
        )


def _expect_some(n: int) -> None:
    if n < 1:
        raise InputError(f"Expected at least 1 architecture to be proposed, but got {n}. Ask for one or more.")
