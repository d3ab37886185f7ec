"""The choice of the fastest way to a model's per-example gradients that is right for it."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from forgetless.importance.layers import by_layer
from forgetless.importance.request import LossFunction, Method, Power, Request, raised, zeros
from forgetless.importance.vmap import by_vmap

CHECKED_EXAMPLES = 3
"""So many examples of a batch are computed one by one as well, to check a method."""


def choose_method(request: Request) -> Method:
    """The fastest method that reproduces single-example gradients on the first examples of the request.

    Args:
        request: Of any kind.
    """
    if request.kind == "batch":
        return _squared_batch_mean
    # Whether a method understands the model does not depend on the labels, and drawn ones would differ.
    sample = request.part(slice(CHECKED_EXAMPLES))._replace(kind="empirical")
    # An example that the model fits perfectly has no gradient, and any method would seem right on it.
    samples = (sample, sample._replace(loss_fn=_with_projection(request.loss_fn)))
    expected = [by_loop(sample) for sample in samples]
    for method in (by_layer, by_vmap):
        if all(_agrees(method, *check) for check in zip(samples, expected, strict=True)):
            return method
    warnings.warn(
        "diagonal_fisher goes through the examples one by one: the model is not made of known layers only and "
        "torch.func.vmap cannot follow it. This is slow.",
        stacklevel=5,  # the caller of `diagonal_fisher`
    )
    return by_loop


def _with_projection(loss_fn: LossFunction) -> LossFunction:
    """The loss plus a fixed linear function of the outputs, whose gradient does not vanish with the loss."""

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        total = loss_fn(outputs, targets).sum()
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                # Unequal coefficients, because the sum of normalised outputs is constant.
                ramp = torch.linspace(0.5, 1.5, leaf.numel(), dtype=leaf.dtype, device=leaf.device)
                total = total + (leaf.flatten() * ramp).sum()
        return total

    return loss


def _agrees(method: Method, sample: Request, expected: dict[str, Tensor]) -> bool:
    try:
        found = method(sample)
    except Exception:  # whatever it is, `by_loop` has just done without
        return False
    largest = max(value.nan_to_num(0, 0, 0).max().item() for value in expected.values() if value.numel())
    return all(
        _close(found[name], value, sample.named[name].dtype, largest, sample.power) for name, value in expected.items()
    )


def _close(found: Tensor, expected: Tensor, dtype: torch.dtype, largest: float, power: Power) -> bool:
    """Up to rounding, including that of gradients which are 0 but for rounding (a bias before a normalisation)."""
    if not expected.numel():
        return True
    if not bool(torch.isfinite(expected).all()):
        return not bool(torch.isfinite(found).all())  # refused by name at the end
    relative = {torch.float64: 1e-9, torch.float32: 1e-2}.get(dtype, 0.2)
    noise = (100 * torch.finfo(dtype).eps) ** power * largest
    return bool((found - expected).abs().max() <= relative * expected.max() + noise)


def by_loop(request: Request) -> dict[str, Tensor]:
    """Sums of powers of per-example gradients by one forward and backward pass per example.

    Args:
        request: Of any kind but `batch`.

    Returns:
        Σ_n |∂ℓ_n/∂θ|^power by parameter name.
    """
    totals = zeros(request.named)
    weights = list(request.named.values())
    for n in range(len(request.targets)):
        example = request.part(slice(n, n + 1))
        outputs = example.forward(example.inputs)
        for targets, shares in example.labels(outputs):
            loss = request.loss_fn(outputs, targets).sum()
            share = 1.0 if shares is None else shares[0]
            gradients = torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=request.kind == "exact")
            for name, gradient in zip(request.named, gradients, strict=True):
                if gradient is not None:
                    totals[name] += raised(gradient.to(totals[name].dtype), request.power) * share
    return totals


def _squared_batch_mean(request: Request) -> dict[str, Tensor]:
    """B times the square of the batch-mean gradient, for batches of B examples."""
    losses = request.example_losses(request.forward(request.inputs), request.targets)
    gradients = torch.autograd.grad(losses.mean(), list(request.named.values()), allow_unused=True)
    totals = zeros(request.named)
    for total, gradient in zip(totals.values(), gradients, strict=True):
        if gradient is not None:
            total += gradient.to(total.dtype).square() * len(request.targets)
    return totals
