"""Ways to choose which architectures train the shared weights, behind one interface.

Each is a file of this package: its class with source in the docstring, its options, and one line that registers it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from forgetless.sampling.base import SAMPLERS, Sampler, SamplerOptions
from forgetless.spaces.base import A, Space

if TYPE_CHECKING:
    import torch


def make_sampler(
    options: SamplerOptions | str, space: Space[A], propose: Callable[[], A], generator: torch.Generator
) -> Sampler[A]:
    """A sampler, which has chosen nothing yet.

    Args:
        options: Of the sampler; or its name, for its defaults.
        space: What it chooses from.
        propose: Asks the search's strategy for an architecture.
        generator: Its source of randomness, on the CPU.

    Raises:
        InputError: If the name is unknown, or the space is not one for this sampler.

    >>> import torch
    >>> from forgetless.spaces.recurrent import RecurrentSpace
    >>> space = RecurrentSpace(2)
    >>> sampler = make_sampler("adjacent", space, lambda: space.decode((0, 0, 0, 0)), torch.Generator())
    >>> first, second = (space.encode(sampler.next()) for _ in range(2))
    >>> sum(one != other for one, other in zip(first, second))
    1
    """
    chosen = SAMPLERS[options].Options() if isinstance(options, str) else options
    made: Sampler[A] = chosen.kind(space, propose, generator, chosen)
    return made


__all__ = [
    # the interface
    "Sampler",
    "SamplerOptions",
    # by name
    "SAMPLERS",
    "make_sampler",
]
