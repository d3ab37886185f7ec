"""Targets where there are none, the loss that goes with them, and how many targets there are."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from forgetless.errors import InputError
from forgetless.importance.labels import Labels, logits_of
from forgetless.importance.request import LossFunction, Request, take, twice


def own_loss(labels: Labels) -> LossFunction:
    """The negative log likelihood of each target, up to a constant: the loss where the user gives none.

    Args:
        labels: With the likelihood; None is `categorical`.
    """

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        outputs = logits_of(outputs, labels.kind)
        match labels.likelihood:
            case "bernoulli":
                return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none")
            case "gaussian":
                return F.mse_loss(outputs, targets, reduction="none") / 2
            case _:
                # vmap hides the examples' dim, so that a dim counted from the front is one of the whole batch still.
                classes_second = outputs.movedim(labels.class_dim, 1)
                return F.cross_entropy(classes_second, targets, reduction="none")

    return loss


def made_targets(request: Request) -> Tensor:
    """Targets to draw labels for, of the shape that the model's outputs have; −100 where `attention_mask` is 0.

    Args:
        request: Without targets, of a kind whose labels are drawn.

    Raises:
        InputError: If the outputs have one class only and the likelihood has no name.
    """
    labels = request.labels
    # Of two examples, because a batch of one may lose its dim.
    some = take(request.inputs, slice(0, 2)) if request.num_examples > 1 else twice(request.inputs)
    outputs = logits_of(request.forward(some), labels.kind).detach()
    if labels.likelihood in {"bernoulli", "gaussian"}:
        return outputs.new_zeros(request.num_examples, *outputs.shape[1:])
    shape = outputs.movedim(labels.class_dim, -1).shape
    if shape[-1] == 1:
        raise InputError(
            "Expected at least two classes where no targets are given, but got outputs of shape "
            f"{tuple(outputs.shape)}: softmax of one class is always 1. "
            "Set likelihood='bernoulli' or 'gaussian'."
        )
    targets = torch.zeros(request.num_examples, *shape[1:-1], dtype=torch.long, device=outputs.device)
    mask = request.inputs.get("attention_mask") if isinstance(request.inputs, dict) else None
    return targets.masked_fill(mask == 0, -100) if isinstance(mask, Tensor) and mask.shape == targets.shape else targets


def num_targets(request: Request, is_checked: bool = False) -> int:
    """How many targets of a batch count: as many as the loss has values, less those that are negative, and so ignored.

    Args:
        request: Whose loss gives one value per target.
        is_checked: Whether it does so is known, from an earlier batch.

    Raises:
        InputError: If the loss gives fewer.
    """
    targets = request.targets
    if is_checked and isinstance(targets, Tensor) and not targets.is_floating_point():
        return int((targets >= 0).sum())
    first = request.part(slice(0, 1))
    loss = request.loss_fn(request.forward(first.inputs), first.targets)
    if not isinstance(targets, Tensor):
        sizes = set() if loss.ndim == 0 else {loss.numel()}
    elif targets.is_floating_point():
        sizes = {math.prod(targets.shape[1:n]) for n in range(1, targets.ndim + 1 if loss.ndim else 2)}
        sizes = sizes if loss.ndim or first.targets.numel() == 1 else set()
    else:
        sizes = {first.targets.numel()}
    if loss.numel() not in sizes:
        raise InputError(
            f"Expected a loss_fn that gives one loss per target for per='target', but got {loss.numel()} of shape "
            f"{tuple(loss.shape)} for an example. Use reduction='none'."
        )
    if isinstance(targets, Tensor) and not targets.is_floating_point():
        return int((targets >= 0).sum())
    return loss.numel() * request.num_examples
