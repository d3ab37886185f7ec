"""What follows an optimizer's step: the shared weights that it moved are drawn to their anchors, in its own metric."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from forgetless.plasticity.block import Block, Columns
from forgetless.plasticity.budget import Limit
from forgetless.plasticity.metric import Metric, group_metric, of_whole
from forgetless.plasticity.moves import Moved
from forgetless.plasticity.penalty import inverse
from forgetless.plasticity.shared_weights import SharedWeights


@torch.no_grad()
def draw(
    alpha: float, weights: SharedWeights, optimizer: Optimizer, moved: Moved, metric: Metric | None = None
) -> None:
    """Take a proximal step of given strength, group by group.

    Args:
        alpha: Strength α > 0.
        weights: The shared weights. Changed in place where they moved and are held.
        optimizer: After its step.
        moved: What its steps moved since the last time.
        metric: Of the optimizer, where it is given.
    """
    for block, group, rate in _blocks(weights, optimizer, moved):
        scale = inverse(alpha * rate)
        block.draw(group_metric(optimizer, group, block.parameters, scale, block.packed, metric))


@torch.no_grad()
def draw_within(
    limit: Limit, weights: SharedWeights, optimizer: Optimizer, moved: Moved, metric: Metric | None = None
) -> None:
    """Draw back what moved, by one multiplier, until all held weights together are within a limit.

    Args:
        limit: Its multiplier is set.
        weights: The shared weights. Changed in place where they moved and are held.
        optimizer: After its step.
        moved: What its steps moved, then.
        metric: Of the optimizer, where it is given.
    """
    blocks: list[Block] = []
    columns: Columns = ([], [], [])
    metrics: list[float | Tensor] = []
    for block, group, rate in _blocks(weights, optimizer, moved):
        of_chunks = group_metric(optimizer, group, block.parameters, inverse(rate), block.packed, metric)
        blocks.append(block)
        own = block.columns()
        for column, values in zip(columns, own, strict=True):
            column += values
        scaled = of_chunks if isinstance(of_chunks, float) else of_whole(of_chunks, own[0])
        metrics += scaled if isinstance(scaled, list) else [scaled] * len(own[0])
    if not blocks:
        return
    places = set(range(len(weights.parameters)))
    rest = sorted(places.difference(*(block.held for block in blocks)))
    other = weights.block((id(optimizer), "others"), rest)
    others = 0.0 if other is None else other.increase()
    limit.draw(*columns, metrics, others)
    for block in blocks:
        block.store()


def _blocks(
    weights: SharedWeights, optimizer: Optimizer, moved: Moved
) -> Iterator[tuple[Block, dict[str, Any], float]]:
    """Of each group the held weights that moved, the group itself, and the sum of learning rates, which is not 0."""
    for g, (group, together) in enumerate(zip(optimizer.param_groups, moved, strict=False)):
        for n, (places, rate) in enumerate(together):
            block = weights.block((id(optimizer), g, n), places)
            if block is not None and rate != 0:
                yield block, group, rate
