"""Ways to choose which architectures a search tries, behind one interface.

A strategy proposes architectures and learns from their rewards. Each is a file with its formula and source in the
docstring:

| name | what it does |
|---|---|
| `uniform` | draws every architecture with the same probability: random search with shared weights |
| `enas` | an LSTM controller that emits one decision after the other, trained by REINFORCE |
| `evolution` | regularised evolution: mutates the best of a tournament, and the oldest dies |
| `nao` | encodes architectures, predicts their rewards, climbs the prediction, decodes |
| `gdas` | a softmax per edge, moved by the gradient of the loss; on `nas201` only |
| `random` | no search: uniform draws, no shared weights |
"""

from typing import Any

from forgetless.architecture import A, Space
from forgetless.errors import expect_one_of
from forgetless.strategies.base import Strategy
from forgetless.strategies.enas import EnasOptions, EnasStrategy
from forgetless.strategies.evolution import EvolutionOptions, EvolutionStrategy
from forgetless.strategies.gdas import GdasOptions, GdasStrategy
from forgetless.strategies.nao import NaoOptions, NaoStrategy
from forgetless.strategies.random import RandomStrategy
from forgetless.strategies.uniform import UniformStrategy

STRATEGIES: dict[str, type[Strategy[Any]]] = {
    "uniform": UniformStrategy,
    "enas": EnasStrategy,
    "evolution": EvolutionStrategy,
    "nao": NaoStrategy,
    "gdas": GdasStrategy,
    "random": RandomStrategy,
}


def make_strategy(
    name: str,
    space: Space[A],
    *,
    seed: int = 0,
    enas: EnasOptions | None = None,
    evolution: EvolutionOptions | None = None,
    nao: NaoOptions | None = None,
    gdas: GdasOptions | None = None,
) -> Strategy[A]:
    """A strategy by its name.

    Args:
        name: A key of STRATEGIES.
        space: What it chooses from.
        seed: Of its generator, and so of its initial weights.
        enas: Options of `enas`, its defaults if None; the other strategies do not look at them.
        evolution: The same of `evolution`.
        nao: The same of `nao`.
        gdas: The same of `gdas`.

    Returns:
        The strategy, which has learnt nothing yet.

    Raises:
        InputError: If the name is unknown, or the space is not one for this strategy.

    >>> from forgetless.architecture import Nas201Space
    >>> strategy = make_strategy("enas", Nas201Space(), seed=1)
    >>> architectures = strategy.propose(10)
    >>> metrics = strategy.learn(architectures, [0.1] * 10)
    """
    expect_one_of("strategy", name, STRATEGIES)
    if name == "enas":
        return EnasStrategy(space, seed, enas)
    if name == "evolution":
        return EvolutionStrategy(space, seed, evolution)
    if name == "nao":
        return NaoStrategy(space, seed, nao)
    if name == "gdas":
        return GdasStrategy(space, seed, gdas)
    return STRATEGIES[name](space, seed)


__all__ = [
    "STRATEGIES",
    "EnasOptions",
    "EnasStrategy",
    "EvolutionOptions",
    "EvolutionStrategy",
    "GdasOptions",
    "GdasStrategy",
    "NaoOptions",
    "NaoStrategy",
    "RandomStrategy",
    "Strategy",
    "UniformStrategy",
    "make_strategy",
]
