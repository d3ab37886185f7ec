"""Losses of a model on a grid of a plane."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from forgetless.experiments.landscape.plane import Plane
from forgetless.tasks.base import evaluating

# Around the paths, as a share of the longer side of what they cover.
_MARGIN = 0.2
_LEAST_SIDE = 0.5


def loss_surface(
    model: nn.Module,
    shared: Sequence[nn.Parameter],
    plane: Plane,
    axes: tuple[Sequence[float], Sequence[float]],
    loss_of: Callable[[nn.Module], float],
) -> list[list[float]]:
    """A model's loss with its shared weights at each point of a grid: θ̂ + x u₁ + y u₂.

    Args:
        model: Its own weights stay; its shared ones are θ̂, and are so again afterwards.
        shared: Its shared weights.
        plane: Of the grid.
        axes: x of the columns and y of the rows.
        loss_of: The mean loss of a model.

    Returns:
        A row for each y.
    """
    anchor = parameters_to_vector(shared).detach().clone()

    def at(x: float, y: float) -> float:
        set_weights(shared, (anchor.double() + plane.at(x, y)).to(anchor.dtype))
        return loss_of(model)

    try:
        return [[at(x, y) for x in axes[0]] for y in axes[1]]
    finally:
        set_weights(shared, anchor)


@torch.no_grad()
def set_weights(weights: Sequence[nn.Parameter], vector: Tensor) -> None:
    """Copy a vector into weights, one after the other.

    Args:
        weights: P in all.
        vector: (P,).
    """
    for weight, part in zip(weights, torch.split(vector, [weight.numel() for weight in weights]), strict=True):
        weight.copy_(part.view_as(weight))


def grid_axes(coordinates: Tensor, num_points: int) -> tuple[list[float], list[float]]:
    """The axes of a grid that holds paths and the origin, with room around them.

    Args:
        coordinates: Of the paths' points, (T, 2).
        num_points: In each direction.

    Returns:
        x and y, evenly spaced, with the origin within their ends.
    """
    low, high = coordinates.amin(0).clamp(max=0), coordinates.amax(0).clamp(min=0)
    longer = float((high - low).max())
    middle = (low + high) / 2
    half = ((high - low) / 2 + _MARGIN * longer).clamp(min=_LEAST_SIDE * longer)
    x, y = (
        torch.linspace(float(m - h), float(m + h), num_points, dtype=torch.float64).tolist()
        for m, h in zip(middle, half, strict=True)
    )
    return x, y


def mean_loss(batch: tuple[Tensor, Tensor], loss: Callable[[Any, Tensor], Tensor]) -> Callable[[nn.Module], float]:
    """A model → its mean loss on a batch, in eval mode.

    Args:
        batch: Images and labels.
        loss: Of outputs and labels, a mean.
    """
    images, labels = batch

    def of(model: nn.Module) -> float:
        with evaluating(model):
            return float(loss(model(images), labels))

    return of
