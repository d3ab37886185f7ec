"""Ways to choose which architectures a search tries, behind one interface.

A strategy proposes architectures and learns from their rewards. Each is a file with its formula and source in the
docstring:

| name | what it does |
|---|---|
| `uniform` | draws every architecture with the same probability: the baseline |
| `enas` | an LSTM controller that emits one decision after the other, trained by REINFORCE |
"""

from typing import Any

from forgetless.architecture import A, Space
from forgetless.errors import expect_one_of
from forgetless.strategies.base import Strategy
from forgetless.strategies.enas import EnasOptions, EnasStrategy
from forgetless.strategies.uniform import UniformStrategy

STRATEGIES: dict[str, type[Strategy[Any]]] = {"uniform": UniformStrategy, "enas": EnasStrategy}


def make_strategy(name: str, space: Space[A], *, seed: int = 0, enas: EnasOptions | None = None) -> Strategy[A]:
    """A strategy by its name.

    Args:
        name: A key of STRATEGIES.
        space: What it chooses from.
        seed: Of its generator, and so of its initial weights.
        enas: Options of `enas`, its defaults if None; the other strategies do not look at them.

    Returns:
        The strategy, which has learnt nothing yet.

    Raises:
        InputError: If the name is unknown.

    >>> from forgetless.architecture import Nas201Space
    >>> strategy = make_strategy("enas", Nas201Space(), seed=1)
    >>> architectures = strategy.propose(10)
    >>> metrics = strategy.learn(architectures, [0.1] * 10)
    """
    expect_one_of("strategy", name, STRATEGIES)
    if name == "enas":
        return EnasStrategy(space, seed, enas or EnasOptions())
    return STRATEGIES[name](space, seed)


__all__ = ["STRATEGIES", "EnasOptions", "EnasStrategy", "Strategy", "UniformStrategy", "make_strategy"]
