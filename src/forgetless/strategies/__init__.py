"""Ways to choose which architectures a search tries, behind one interface.

A strategy proposes architectures and learns from their rewards. Each is a file, or a folder, of this package: its class
with formula and source in the docstring, its options, and one line that registers it.
"""

import dataclasses
from typing import Any

from forgetless.spaces.base import A, Space
from forgetless.strategies.base import STRATEGIES, Strategy, StrategyOptions


def make_strategy(
    options: StrategyOptions | str, space: Space[A], *, seed: int = 0, num_steps: int = 50, **changes: Any
) -> Strategy[A]:
    """A strategy, which has learnt nothing yet.

    Args:
        options: Of the strategy; or its name, for its defaults.
        space: What it chooses from.
        seed: Of its generator, and so of its initial weights.
        num_steps: How many calls of `learn` there will be.
        **changes: Options with another value.

    Returns:
        The strategy.

    Raises:
        InputError: If the name is unknown, an option is out of its range, or the space is not one for this strategy.

    >>> from forgetless.spaces.nas201 import Nas201Space
    >>> strategy = make_strategy("enas", Nas201Space(), seed=1)
    >>> architectures = strategy.propose(10)
    >>> metrics = strategy.learn(architectures, [0.1] * 10)
    """
    chosen = STRATEGIES[options].Options() if isinstance(options, str) else options
    chosen = dataclasses.replace(chosen, **changes) if changes else chosen
    made: Strategy[A] = chosen.kind(space, seed, chosen, num_steps=num_steps)
    return made


__all__ = [
    # the interface
    "Strategy",
    "StrategyOptions",
    # by name
    "STRATEGIES",
    "make_strategy",
]
