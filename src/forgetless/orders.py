"""The order in which remembered examples come, over and over: the same in every run, and after a resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def endless_order(num_examples: int, start: int, number: int, seed: int = 0) -> Tensor:
    """The places of the examples number `start`, `start` + 1, … of passes over all, each pass in an order of its own.

    Args:
        num_examples: Of a pass, at least 1.
        start: How many to pass over.
        number: How many, at least 1.
        seed: Of the orders.

    Returns:
        Indices (number,), on the CPU. Each pass has every index once, in an order that the seed decides.

    >>> sorted(endless_order(4, 4, 4).tolist())
    [0, 1, 2, 3]
    """
    import torch

    passes = range(start // num_examples, (start + number - 1) // num_examples + 1)
    orders = [
        torch.randperm(num_examples, generator=torch.Generator().manual_seed(seed * 1_000_003 + each))
        for each in passes
    ]
    return torch.cat(orders)[start % num_examples :][:number]
