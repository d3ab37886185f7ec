"""The metric d in which an optimizer steps: a steady gradient g moves a weight by lr · g / d per step.

A proximal step is taken in the optimizer's own metric, so that a weight comes to rest where the gradient of the whole
loss vanishes, whatever the optimizer.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from forgetless.plasticity.packing import Packed

# Added to d/lr: 0/0 is no pull.
TINY = torch.finfo(torch.float32).tiny


def scaled_metric(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    parameters: Sequence[Tensor],
    scale: float,
    packed: Packed | None = None,
) -> float | list[Tensor]:
    """The metric d, times a scale, of some weights of one of the optimizer's groups, kept above 0.

    | optimizer | d_i |
    |---|---|
    | SGD | 1 |
    | SGD with momentum μ, dampening τ, Nesterov or not | (1 − μ) / (1 − τ): a steady gradient moves it lr·g/d |
    | Adam, AdamW | √v̂_i + ε (v̂ its bias-corrected second moment) |
    | any other | 1 |

    Args:
        optimizer: After its step.
        group: One of its parameter groups.
        parameters: Weights of this group that have stepped.
        scale: Such as 1/lr, above 0.
        packed: Space for tensors like these weights; the metric is then that of the tensors that it returns.

    Returns:
        One number for all, or a tensor for each weight, at least float32; the caller may overwrite it.
    """
    if isinstance(optimizer, Adam):
        return adam_metric(optimizer, group, parameters, scale, packed)
    return (sgd_metric(group) if isinstance(optimizer, SGD) else 1.0) * scale + TINY


def sgd_metric(group: Mapping[str, Any]) -> float:
    """(1 − μ)/(1 − τ): a steady gradient g moves a weight by lr·g·(1 − τ)/(1 − μ) per step of SGD with momentum.

    Args:
        group: A parameter group of SGD.
    """
    momentum, dampening = float(group.get("momentum", 0.0)), float(group.get("dampening", 0.0))
    if momentum == 0 or momentum >= 1 or dampening >= 1:
        return 1.0
    return (1 - momentum) / (1 - dampening)


def adam_metric(
    optimizer: Adam,
    group: Mapping[str, Any],
    parameters: Sequence[Tensor],
    scale: float,
    packed: Packed | None = None,
) -> list[Tensor]:
    """(√v̂ + ε) · scale + TINY, with v̂ = v / (1 − β₂ᵗ) and, with amsgrad, the largest v so far.

    Args:
        optimizer: Adam or AdamW, after its step.
        group: One of its parameter groups.
        parameters: Weights of this group that have stepped.
        scale: See above.
        packed: See above.

    Returns:
        One tensor per weight, at least float32.
    """
    moment = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
    states = [optimizer.state[parameter] for parameter in parameters]
    moments = [state[moment] for state in states]
    beta2 = float(group["betas"][1])
    # A step that a gradient scaler skipped leaves t and v at 0.
    factors: list[Any] = [scale / math.sqrt(1 - beta2 ** max(float(state["step"]), 1.0)) for state in states]
    if packed is not None:
        moments, factors = packed.load(moments), packed.spread(factors)
    metric = list(torch._foreach_sqrt([wide(values) for values in moments]))
    if any(isinstance(factor, Tensor) for factor in factors):
        for values, factor in zip(metric, factors, strict=True):
            values.mul_(factor)
    else:
        torch._foreach_mul_(metric, factors)
    torch._foreach_add_(metric, group["eps"] * scale + TINY)
    return metric


def wide(tensor: Tensor) -> Tensor:
    """The tensor in at least float32; itself if it is.

    Args:
        tensor: Of any floating-point type.
    """
    return tensor.to(wide_type(tensor.dtype))


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """The type, or float32 if that holds more.

    Args:
        dtype: Of floating point.
    """
    return torch.promote_types(dtype, torch.float32)
