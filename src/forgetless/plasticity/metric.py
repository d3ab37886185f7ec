"""The metric d in which an optimizer steps: a steady gradient g moves a weight by lr · g / d per step.

A proximal step is taken in the optimizer's own metric, so that a weight comes to rest where the gradient of the whole
loss vanishes, whatever the optimizer. Each optimizer has one definition: those of SGD and Adam are here, the others in
`forgetless.plasticity.optimizers`; docs/optimizers.md is their table.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from forgetless.plasticity.packing import Packed

# Added to d/lr: 0/0 is no pull.
TINY = torch.finfo(torch.float32).tiny

Metric = Callable[[Optimizer, Mapping[str, Any], Tensor], float | Tensor]
"""(optimizer after its step, the weight's group, the weight) ↦ d > 0: a number, or a tensor in the weight's shape."""

_METRICS: dict[str, Metric] = {}
_REFUSED: dict[str, str] = {
    "torch.LBFGS": "searches along lines, whose curvature a step after it would falsify",
    "torch.Rprop": "steps by the sign of the gradient alone, so that no gradient balances the pull",
    "ScheduleFree": "evaluates an average of the weights that a step after it would not move",
}


def known_metric(optimizer: Optimizer) -> Metric | None:
    """The definition of d for the optimizer, by its class or one that it inherits from; None if there is none.

    Args:
        optimizer: Any.

    Raises:
        ValueError: If a proximal step after this optimizer's would be wrong whatever d.
    """
    for name in _names(type(optimizer)):
        if (reason := _REFUSED.get("ScheduleFree" if "ScheduleFree" in name else name)) is not None:
            raise ValueError(
                f"Expected an optimizer that a proximal step can follow, but got {type(optimizer).__name__}, which "
                f"{reason}. Add plasticity.penalty() to the loss, or attach(optimizer, metric=...) with a metric."
            )
        if name in _METRICS:
            return _METRICS[name]
    return None


def metric_of(*names: str) -> Callable[[Metric], Metric]:
    """Define d of some optimizers.

    Args:
        names: `package.Class`, where the package is the first word of the module's name.
    """

    def define(metric: Metric) -> Metric:
        _METRICS.update(dict.fromkeys(names, metric))
        return metric

    return define


def learning_rate(group: Mapping[str, Any]) -> float:
    """Learning rate of a parameter group; 1 where it is None, as the optimizer then has step sizes of its own.

    Args:
        group: A parameter group.
    """
    rate = group.get("lr", 1.0)
    return 1.0 if rate is None else float(rate)


def scaled_metric(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    parameters: Sequence[Tensor],
    scale: float,
    packed: Packed | None = None,
    metric: Metric | None = None,
) -> float | list[Tensor]:
    """The metric d, times a scale, of some weights of one of the optimizer's groups, kept above 0.

    | optimizer | d_i |
    |---|---|
    | SGD | 1 |
    | SGD with momentum μ, dampening τ, Nesterov or not | (1 − μ) / (1 − τ): a steady gradient moves it lr·g/d |
    | Adam, AdamW | √v̂_i + ε (v̂ its bias-corrected second moment) |
    | the others of `torch.optim`, and some beside them | see `forgetless.plasticity.optimizers` |
    | unknown, without a metric | 1 |

    Args:
        optimizer: After its step.
        group: One of its parameter groups.
        parameters: Weights of this group that have stepped.
        scale: Such as 1/lr, above 0.
        packed: Space for tensors like these weights; the metric is then that of the tensors that it returns.
        metric: d of an optimizer that is not known here, or in place of what is.

    Returns:
        One number for all, or a tensor for each weight, at least float32; the caller may overwrite it. Of a complex
        weight it is that of its real and imaginary parts, in a last dimension of 2.

    Raises:
        ValueError: If `metric` returns a tensor in another shape than its weight's.
    """
    if metric is None and isinstance(optimizer, Adam):
        return adam_metric(optimizer, group, parameters, scale, packed)
    if metric is None and isinstance(optimizer, SGD):
        return sgd_metric(group) * scale + TINY
    definition = metric or known_metric(optimizer)
    if definition is None:
        return scale + TINY
    values = [definition(optimizer, group, parameter) for parameter in parameters]
    numbers = {value for value in values if not isinstance(value, Tensor)}
    if len(numbers) == 1 and not any(isinstance(value, Tensor) for value in values):
        return float(numbers.pop()) * scale + TINY
    tensors = [_filled(value, parameter) for value, parameter in zip(values, parameters, strict=True)]
    scaled = list(torch._foreach_mul(tensors if packed is None else packed.load(tensors), scale))
    torch._foreach_add_(scaled, TINY)
    return scaled


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
    optimizer: Optimizer,
    group: Mapping[str, Any],
    parameters: Sequence[Tensor],
    scale: float,
    packed: Packed | None = None,
) -> list[Tensor]:
    """(√v̂ + ε) · scale + TINY, with v̂ = v / (1 − β₂ᵗ) and, with amsgrad, the largest v so far.

    Args:
        optimizer: Adam or AdamW, or one with the same state, after its step.
        group: One of its parameter groups.
        parameters: Weights of this group that have stepped.
        scale: See above.
        packed: See above.

    Returns:
        One tensor per weight, at least float32.
    """
    moment = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
    states = [optimizer.state[parameter] for parameter in parameters]
    moments = [plain(state[moment]) for state in states]
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


def plain(moment: Tensor) -> Tensor:
    """A tensor of an optimizer's state as real numbers: complex ones as pairs, those in 8 bits or less made floating.

    Args:
        moment: Such as a second moment.
    """
    if hasattr(type(moment), "__tensor_flatten__") and hasattr(moment, "dequantize"):
        moment = moment.dequantize()
    return real(moment)


def real(tensor: Tensor) -> Tensor:
    """A complex tensor as a view of its real and imaginary parts, in a last dimension of 2; a real one as it is.

    Args:
        tensor: Of any floating-point type.
    """
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _names(kind: type) -> list[str]:
    """`package.Class` of the class and those that it inherits from."""
    return [f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in kind.__mro__]


def _filled(value: float | Tensor, parameter: Tensor) -> Tensor:
    """The metric in the shape of the weight, or of its real and imaginary parts."""
    shape = real(parameter).shape
    if not isinstance(value, Tensor):
        return torch.full(shape, float(value), dtype=wide_type(parameter.dtype), device=parameter.device)
    value = wide(value)
    if value.shape == shape:
        return value
    if value.shape not in ((), parameter.shape):
        raise ValueError(
            f"Expected a metric in the weight's shape {tuple(parameter.shape)}, but got {tuple(value.shape)}. "
            "Return one positive number per weight, or one for all."
        )
    return value.reshape((*value.shape, *(1,) * (len(shape) - value.ndim))).expand(shape)


def wide(tensor: Tensor) -> Tensor:
    """The tensor in at least float32; itself if it is.

    Args:
        tensor: Of any floating-point type; not complex.
    """
    return tensor.to(wide_type(tensor.dtype))


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """The type, or float32 if that holds more; of a complex one that of its parts.

    Args:
        dtype: Of floating point, or complex.
    """
    return torch.promote_types(dtype.to_real(), torch.float32)
