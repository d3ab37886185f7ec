"""The added term of the weight plasticity loss, and its implicit form, which is finite for every α.

    L_WPL(θ₂, θ_s) = L₂(θ₂, θ_s) + α/2 Σ_i F_i (θ_s,i − θ̂_s,i)²

Source: arXiv:1902.08232, eq. 8. Both are functions of weights, anchors and importances, without any state.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from forgetless.plasticity.metric import TINY, wide
from forgetless.sharding import Sums, local

# Keeps lr·α and its inverse finite in float32 for every α.
_LARGEST_SCALE = 1e38


def quadratic_penalty(
    parameters: Sequence[Tensor], anchors: Sequence[Tensor], importances: Sequence[Tensor], alpha: float
) -> Tensor:
    """The penalty α/2 Σ_i F_i (θ_i − θ̂_i)², differentiable in the parameters.

    Its gradient is α F_i (θ_i − θ̂_i). Gradient descent on it is stable only while lr·α·F_i < 2 for every i; the
    proximal step has no such limit.

    Source: arXiv:1902.08232, eq. 8.

    Args:
        parameters: The shared weights θ. Where they are DTensors, the value is that of all processes, and the gradient
            that of each one's part: it is not to be averaged over processes, and `fully_shard` does not.
        anchors: θ̂, in the same order and shapes.
        importances: F ≥ 0, in the same order and shapes.
        alpha: Strength α ≥ 0.

    Returns:
        A scalar in the unit of the loss; 0 for no parameters.

    Raises:
        ValueError: If `alpha` is negative or not finite.

    >>> theta = torch.tensor([1.0, 3.0], requires_grad=True)
    >>> penalty = quadratic_penalty([theta], [torch.zeros(2)], [torch.tensor([2.0, 0.0])], alpha=10.0)
    >>> penalty.item(), torch.autograd.grad(penalty, theta)[0].tolist()
    (10.0, [20.0, 0.0])
    """
    check_alpha(alpha)
    columns = ([local(value) for value in column] for column in (parameters, anchors, importances))
    forms = [(f * (theta - anchor).square()).sum() for theta, anchor, f in zip(*columns, strict=True)]
    total = local(parameters[0]).new_zeros(()) if parameters else torch.zeros(())
    for form in forms:
        total = total + form
    sums = Sums(parameters)
    if not sums.is_local:
        total = total + (sums(torch.stack(forms).detach().to(total.dtype)) - total.detach())
    return min(alpha / 2, torch.finfo(total.dtype).max) * total  # inf · 0 is NaN


@torch.no_grad()
def proximal_step(
    parameters: Sequence[Tensor],
    anchors: Sequence[Tensor],
    importances: Sequence[Tensor],
    *,
    alpha: float,
    learning_rate: float,
    metric: float | Sequence[Tensor] = 1.0,
) -> None:
    """Draw the parameters towards their anchors, in place, by the proximal operator of the quadratic penalty.

        θ_i ← (θ_i + s_i θ̂_i) / (1 + s_i),    s_i = lr · α · F_i / d_i

    It minimises α/2 Σ F_i (θ'_i − θ̂_i)² + 1/(2 lr) Σ d_i (θ'_i − θ_i)², is finite for every α in [0, ∞), and leaves
    the parameters bit for bit where α or F is 0.

    Args:
        parameters: The shared weights θ after the optimizer's own step. Changed in place; of DTensors, each process's
            part.
        anchors: θ̂, in the same order, shapes, types and devices.
        importances: F ≥ 0, in the same order and shapes.
        alpha: Strength α ≥ 0.
        learning_rate: lr of the step just taken.
        metric: The optimizer's preconditioner d > 0: a number, or one tensor per parameter.

    Raises:
        ValueError: If `alpha` is negative or not finite.

    >>> theta = torch.tensor([1.0, 1.0])
    >>> proximal_step([theta], [torch.zeros(2)], [torch.tensor([1.0, 0.0])], alpha=3.0, learning_rate=1.0)
    >>> theta
    tensor([0.2500, 1.0000])
    """
    check_alpha(alpha)
    if alpha == 0 or learning_rate == 0 or not parameters:
        return
    parameters, anchors, importances = ([local(v) for v in column] for column in (parameters, anchors, importances))
    scale = inverse(alpha * learning_rate)
    if isinstance(metric, float | int):
        shares = pulls(importances, metric * scale + TINY, parameters)
    else:
        scaled = list(torch._foreach_mul([wide(local(values)) for values in metric], scale))
        torch._foreach_add_(scaled, TINY)
        shares = pulls(importances, scaled, parameters)
    torch._foreach_lerp_(parameters, anchors, shares)


def check_alpha(alpha: float) -> None:
    """Refuse a strength that is none.

    Args:
        alpha: α.

    Raises:
        ValueError: If it is negative or not finite.
    """
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"Expected alpha to be finite and at least 0, but got {alpha}. 0 switches the protection off.")


def inverse(strength: float) -> float:
    """1/(lr·α), kept finite.

    Args:
        strength: lr·α ≥ 0, or lr alone.
    """
    return 1 / min(max(strength, 1 / _LARGEST_SCALE), _LARGEST_SCALE)


def pulls(
    importances: Sequence[Tensor], scaled_metric: float | list[Tensor], parameters: Sequence[Tensor]
) -> list[Tensor]:
    """s/(1 + s) = F / (F + d/(lr·α)): the share of its way to the anchor that a weight goes.

    Nothing overflows: F is finite, and where d/(lr·α) is not there is no pull.

    Args:
        importances: F ≥ 0.
        scaled_metric: d/(lr·α) + `TINY`, a number or one tensor per parameter. Tensors are overwritten.
        parameters: Those whose types the shares shall have.

    Returns:
        One tensor per parameter.
    """
    importances = [wide(importance) for importance in importances]
    if isinstance(scaled_metric, float):
        denominators = list(torch._foreach_add(importances, scaled_metric))
    else:
        denominators = scaled_metric
        torch._foreach_add_(denominators, importances)
    shares = torch._foreach_div(importances, denominators)
    return [share.to(parameter.dtype) for share, parameter in zip(shares, parameters, strict=True)]
