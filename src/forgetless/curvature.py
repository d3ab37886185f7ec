"""The Gauss-Newton curvature of a model's loss as a low-rank factor, and its Schur complement.

With J_n the Jacobian of example n's outputs and A_n = B_nᵀB_n the Hessian of its loss in these outputs,

    1/N Σ_n J_nᵀ A_n J_n = GᵀG,    G = rows √(1/N) B_n J_n

A is diag(p) − p pᵀ for cross entropy and the identity for half a squared error; it is taken from the loss, whatever
that is. For models that are linear in their weights GᵀG is the Hessian. No matrix of weights × weights is ever formed.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forgetless.errors import DivergedError, InputError
from forgetless.importance.model import evaluating
from forgetless.plasticity.metric import wide

MOST_OUTPUTS = 100
"""Up to so many outputs per example the curvature is taken over all of them; above, labels are drawn."""


def gauss_newton_factor(
    model: nn.Module,
    examples: Iterable[tuple[Any, Tensor]],
    loss: Callable[[Any, Tensor], Tensor],
    weights: Sequence[Tensor],
    generator: torch.Generator,
) -> Tensor:
    """G with GᵀG the Gauss-Newton matrix of the mean loss over examples; see below.

    The model is evaluated in eval mode and left as it was found.

    Args:
        model: Its output is a tensor.
        examples: Batches of one example each: inputs and targets.
        loss: (outputs, targets) of such a batch → its mean loss, convex in the outputs.
        weights: Those to differentiate by.
        generator: Draws the labels where an example has more than `MOST_OUTPUTS` outputs; on the CPU.

    Returns:
        A row for each example and direction of its outputs, all weights in one vector: (r, p).

    Raises:
        InputError: If there are no examples, or a derivative is not finite.

    >>> linear = nn.Linear(1, 1, bias=False)
    >>> squared_error = lambda output, target: (output - target).square().sum() / 2
    >>> data = [(torch.tensor([[x]]), torch.zeros(1, 1)) for x in (1.0, 2.0)]
    >>> gauss_newton_factor(linear, data, squared_error, [linear.weight], torch.Generator()).square().sum()
    tensor(2.5000)
    """
    found: list[Tensor] = []
    num_examples = 0
    with evaluating(model):
        for inputs, targets in examples:
            outputs = model(inputs)
            _expect_finite(outputs)
            if outputs.numel() <= MOST_OUTPUTS:
                directions = _output_factor(loss, outputs.detach(), targets)
            else:
                directions = _drawn_direction(loss, outputs.detach(), targets, generator)
            # One backward pass for all directions would be a vmap, which not every layer can do.
            for direction in directions:
                parts = torch.autograd.grad(outputs, weights, direction, retain_graph=True, allow_unused=True)
                whole = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, parts, strict=True)]
                found.append(flat(whole))
            num_examples += 1
    if num_examples == 0:
        raise InputError("Expected at least one example for the curvature, but got none. Pass held-out batches.")
    rows = torch.stack(found) / math.sqrt(num_examples) if found else flat(weights).new_zeros(0, flat(weights).numel())
    _expect_finite(rows)
    return rows


def _output_factor(loss: Callable[[Any, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
    """B with BᵀB the Hessian of an example's loss in its outputs: (rank, *outputs)."""
    hessian: Tensor = torch.autograd.functional.hessian(  # type: ignore[no-untyped-call]
        lambda flattened: loss(flattened.view_as(outputs), targets), outputs.flatten()
    )
    values, vectors = torch.linalg.eigh(hessian.double())
    kept = values > values[-1].clamp_min(0) * torch.finfo(outputs.dtype).eps * len(values)
    factor: Tensor = (vectors[:, kept] * values[kept].sqrt()).T
    return factor.to(outputs.dtype).reshape(-1, *outputs.shape)


def _drawn_direction(
    loss: Callable[[Any, Tensor], Tensor], outputs: Tensor, targets: Tensor, generator: torch.Generator
) -> Tensor:
    """√T times the gradient of an example's mean loss in its outputs, at drawn labels: (1, *outputs)."""
    if targets.is_floating_point() or outputs.shape[:-1] != targets.shape:
        raise InputError(
            f"Expected at most {MOST_OUTPUTS} outputs per example, or logits with the classes last and one class per "
            f"target, but got outputs {tuple(outputs.shape)} and {targets.dtype} targets {tuple(targets.shape)}."
        )
    probabilities = outputs.flatten(0, -2).double().cpu().softmax(-1)
    drawn = torch.multinomial(probabilities, 1, generator=generator).view_as(targets).to(targets.device)
    logits = outputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits, drawn), logits)
    return (gradient * math.sqrt(targets.numel())).unsqueeze(0)


def _expect_finite(tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise DivergedError(
            "Expected finite outputs and derivatives for the curvature, but got inf or nan. "
            "Check that the model has not diverged."
        )


@torch.no_grad()
def marginal_factor(private: Tensor, shared: Tensor, prior: float) -> Tensor:
    """L with λI + LᵀL the Schur complement H_ss − H_s1 H₁₁⁻¹ H_1s of H = GᵀG + λI.

        L = (I + G₁G₁ᵀ/λ)^(−1/2) G_s

    Args:
        private: G₁ (r, p₁).
        shared: G_s (r, p_s).
        prior: λ > 0.

    Returns:
        L (r, p_s).

    Raises:
        InputError: If λ is not above 0 and finite.

    >>> round(marginal_factor(torch.tensor([[1.0]]), torch.tensor([[2.0]]), prior=1.0).square().item(), 5)  # 4 − 2²/2
    2.0
    """
    expect_prior(prior)
    if private.shape[1] == 0:
        return shared
    values, vectors = spectrum(private)
    return (vectors / (1 + values / prior).sqrt()).T.to(shared.dtype) @ shared


@torch.no_grad()
def leading_rows(rows: Tensor, number: int) -> Tensor:
    """At most so many rows, whose RᵀR is that of all but for the directions of the least singular values.

    Args:
        rows: (r, p).
        number: How many to keep, at least 1.

    Returns:
        The rows themselves if there are no more; otherwise the leading right singular vectors times their values.

    >>> leading_rows(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), 1).abs()
    tensor([[3., 0.]])
    """
    if len(rows) <= number:
        return rows
    _, vectors = spectrum(rows)
    return vectors[:, -number:].T.to(rows.dtype) @ rows


def spectrum(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending and at least 0, and eigenvectors of RRᵀ, in float64.

    Args:
        rows: R (r, p).
    """
    values, vectors = torch.linalg.eigh((rows @ rows.T).double())
    return values.clamp_(min=0), vectors


def expect_prior(prior: float) -> None:
    """Refuse a precision that makes no curvature invertible.

    Args:
        prior: λ.

    Raises:
        InputError: If it is not above 0 and finite.
    """
    if not (math.isfinite(prior) and prior > 0):
        raise InputError(
            f"Expected prior to be finite and above 0, but got {prior}. Without it the curvature of the private "
            "weights cannot be inverted."
        )


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors as one vector, detached and in at least float32.

    Args:
        tensors: At least one.
    """
    return torch.cat([wide(tensor.detach()).flatten() for tensor in tensors])
