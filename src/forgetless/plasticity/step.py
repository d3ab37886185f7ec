"""What follows an optimizer's step: the shared weights that it moved are drawn to their anchors, in its own metric."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from forgetless.plasticity.block import Block
from forgetless.plasticity.budget import Budget
from forgetless.plasticity.metric import Metric, learning_rate, scaled_metric
from forgetless.plasticity.penalty import inverse
from forgetless.plasticity.shared_weights import SharedWeights

Moved = list[list[int]]
"""Of each parameter group of an optimizer, the places among the shared weights of those that moved."""


def places_moved(weights: SharedWeights, optimizer: Optimizer) -> Moved:
    """Which shared weights an optimizer's step has moved: those with a gradient.

    Args:
        weights: The shared weights.
        optimizer: After its step.
    """
    places = weights.places.index
    return [
        [places[id(p)] for p in group["params"] if p.grad is not None and id(p) in places]
        for group in optimizer.param_groups
    ]


@torch.no_grad()
def draw(
    alpha: float, weights: SharedWeights, optimizer: Optimizer, moved: Moved, metric: Metric | None = None
) -> None:
    """Take a proximal step of given strength, group by group.

    Args:
        alpha: Strength α > 0.
        weights: The shared weights. Changed in place where they moved and are held.
        optimizer: After its step.
        moved: By `places_moved`.
        metric: Of the optimizer, where it is given.
    """
    for block, group, rate in _blocks(weights, optimizer, moved):
        scale = inverse(alpha * rate)
        block.draw(scaled_metric(optimizer, group, block.parameters, scale, block.space, metric))


@torch.no_grad()
def draw_within(
    budget: Budget, weights: SharedWeights, optimizer: Optimizer, moved: Moved, metric: Metric | None = None
) -> None:
    """Draw back what moved, by one multiplier, until all held weights together are within a budget.

    Args:
        budget: Its multiplier is set.
        weights: The shared weights. Changed in place where they moved and are held.
        optimizer: After its step.
        moved: By `places_moved`, then.
        metric: Of the optimizer, where it is given.
    """
    blocks: list[Block] = []
    values: list[Tensor] = []
    metrics: list[float | Tensor] = []
    for block, group, rate in _blocks(weights, optimizer, moved):
        scaled = scaled_metric(optimizer, group, block.parameters, inverse(rate), block.space, metric)
        blocks.append(block)
        values += block.load()
        metrics += scaled if isinstance(scaled, list) else [scaled] * len(block.anchors)
    if not blocks:
        return
    anchors, importances = [a for b in blocks for a in b.anchors], [f for b in blocks for f in b.importances]
    places = set(range(len(weights.parameters)))
    rest = weights.held(sorted(places.difference(*(block.held for block in blocks))))
    others = weights.block((id(optimizer), "others"), rest).increase() if rest else 0.0
    budget.draw(values, anchors, importances, metrics, others)
    for block in blocks:
        block.store()


def _blocks(
    weights: SharedWeights, optimizer: Optimizer, moved: Moved
) -> Iterator[tuple[Block, dict[str, Any], float]]:
    """Of each group the held weights that moved, the group itself, and its learning rate, which is not 0."""
    for g, (group, places) in enumerate(zip(optimizer.param_groups, moved, strict=False)):
        held, rate = weights.held(places), learning_rate(group)
        if held and rate != 0:
            yield weights.block((id(optimizer), g), held), group, rate
