"""The metric d in which an optimizer steps: a steady gradient g moves a weight by lr · g / d per step.

A proximal step is taken in the optimizer's own metric, so that a weight comes to rest where the gradient of the whole
loss vanishes, whatever the optimizer. Each optimizer has one definition: those of SGD and Adam are here, the others in
`forgetless.plasticity.optimizers`; docs/optimizers.md is their table.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from forgetless.plasticity.chunks import Chunk, square_roots_into
from forgetless.plasticity.packing import Packed
from forgetless.sharding import local

# Added to d/lr: 0/0 is no pull.
TINY = torch.finfo(torch.float32).tiny

Metric = Callable[[Optimizer, Mapping[str, Any], Tensor], float | Tensor]
"""(optimizer after its step, the weight's group, the weight) ↦ d > 0: a number, or a tensor in the weight's shape."""

Definition = Callable[[dict[str, Any], Mapping[str, Any], Tensor], float | Tensor]
"""(the weight's state after the step, its group, the weight) ↦ d > 0, a number (of Python or a tensor of one), or a
tensor in the shape of the weight, or of its real and imaginary parts."""


class Known(NamedTuple):
    """What is known of an optimizer's metric.

    Attributes:
        definition: Of d.
        is_elementwise: Whether d of a part of a weight needs that part of its state only.
    """

    definition: Definition
    is_elementwise: bool


ChunkMetric = Callable[[Sequence[Chunk], list[Tensor]], Sequence[float | Tensor]]
"""(parts of weights, space of at least float32 for each) ↦ d times a scale of each: the space, or one number."""

_METRICS: dict[str, Known] = {}
_REFUSED: dict[str, str] = {
    "torch.LBFGS": "searches along lines, whose curvature a step after it would falsify",
    "torch.Rprop": "steps by the sign of the gradient alone, so that no gradient balances the pull",
    "ScheduleFree": "evaluates an average of the weights that a step after it would not move",
}


def known_metric(optimizer: Optimizer) -> Known | None:
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


def metric_of(*names: str, is_elementwise: bool = False) -> Callable[[Definition], Definition]:
    """Define d of some optimizers.

    Args:
        names: `package.Class`, where the package is the first word of the module's name.
        is_elementwise: See `Known`.
    """

    def define(definition: Definition) -> Definition:
        _METRICS.update(dict.fromkeys(names, Known(definition, is_elementwise)))
        return definition

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
        metric: d of an optimizer that is not known here, or in place of what is.

    Returns:
        One number for all, or a tensor for each weight, at least float32; the caller may overwrite it. Of a complex
        weight it is that of its real and imaginary parts, in a last dimension of 2.

    Raises:
        ValueError: If `metric` returns a tensor in another shape than its weight's.
    """
    of_chunks = group_metric(optimizer, group, parameters, scale, metric=metric)
    return of_chunks if isinstance(of_chunks, float) else of_whole(of_chunks, parameters)


def of_whole(of_chunks: ChunkMetric, weights: Sequence[Tensor]) -> float | list[Tensor]:
    """The metric of whole weights, or the number that it is of all.

    Args:
        of_chunks: From `group_metric`.
        weights: All of them, in order; only shapes, types and devices matter.
    """
    weights = [real(local(weight.detach())) for weight in weights]
    chunks = [Chunk(i, 0, None, weight.shape, weight.stride()) for i, weight in enumerate(weights)]
    space = [torch.empty_like(weight, dtype=wide_type(weight.dtype)) for weight in weights]
    found = of_chunks(chunks, space)
    if not any(isinstance(value, Tensor) for value in found) and len(set(found)) == 1:
        return float(found[0])
    return [out if value is out else out.copy_(torch.as_tensor(value)) for value, out in zip(found, space, strict=True)]


def group_metric(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    parameters: Sequence[Tensor],
    scale: float,
    packed: Packed | None = None,
    metric: Metric | None = None,
) -> float | ChunkMetric:
    """As `scaled_metric`, chunk by chunk: nothing is computed before it is asked for.

    Args:
        optimizer: See above, as are the others.
        group: See above.
        parameters: See above.
        scale: See above.
        packed: Space for tensors like these weights; chunks are then those of the tensors that it returns.
        metric: See above.
    """
    if metric is None and isinstance(optimizer, Adam):
        return adam_metric(optimizer, group, parameters, scale, packed)
    if metric is None and isinstance(optimizer, SGD):
        return sgd_metric(group) * scale + TINY
    if metric is not None:
        whole: Callable[[Tensor], float | Tensor] = partial(metric, optimizer, group)
        return _DefinedMetric(parameters, whole, None, scale, packed)
    known = known_metric(optimizer)
    if known is None:
        return scale + TINY

    def of_weight(parameter: Tensor) -> float | Tensor:
        return known.definition(optimizer.state[parameter], group, parameter)

    def of_chunk(chunk: Chunk, parameter: Tensor) -> float | Tensor:
        state = optimizer.state[parameter].items()
        own = {name: _part(chunk, value) if isinstance(value, Tensor) else value for name, value in state}
        return known.definition(own, group, chunk.of(real(local(parameter))))

    return _DefinedMetric(parameters, of_weight, of_chunk if known.is_elementwise else None, scale, packed)


class _DefinedMetric:
    """A metric by its definition.

    Args:
        parameters: The weights.
        of_weight: d of a whole one.
        of_chunk: d of a part of one; None if it has to be computed of the whole.
        scale: What it is multiplied by.
        packed: The small ones are computed at once, and laid out as it says.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        of_weight: Callable[[Tensor], float | Tensor],
        of_chunk: Callable[[Chunk, Tensor], float | Tensor] | None,
        scale: float,
        packed: Packed | None,
    ) -> None:
        self._of_weight, self._of_chunk, self._scale = of_weight, of_chunk, scale
        self._flat: list[Tensor] = []
        self._loose = list(parameters)
        if packed is not None:
            self._loose = [parameters[i] for i in packed.loose]
            small = set(range(len(parameters))).difference(packed.loose)
            filled = [_filled(of_weight(p), p) if i in small else p for i, p in enumerate(parameters)]
            self._flat = packed.load(filled)[: len(packed.load(filled)) - len(self._loose)]
        self._last: tuple[int, float | Tensor] | None = None

    def __call__(self, chunks: Sequence[Chunk], space: Sequence[Tensor]) -> list[float | Tensor]:
        found: list[float | Tensor] = []
        for chunk, out in zip(chunks, space, strict=True):
            value = self._of(chunk)
            if isinstance(value, Tensor) and value.ndim > 0:
                found.append(torch.mul(wide(value), self._scale, out=out).add_(TINY))
            else:
                found.append(value * self._scale + TINY)
        return found

    def _of(self, chunk: Chunk) -> float | Tensor:
        i = chunk.tensor - len(self._flat)
        if i < 0:
            return chunk.of(self._flat[chunk.tensor])
        parameter = self._loose[i]
        if self._of_chunk is not None and chunk.stop is not None:
            return self._of_chunk(chunk, parameter)
        if self._last is None or self._last[0] != i:
            value = self._of_weight(parameter)
            is_number = not isinstance(value, Tensor) or (value.ndim == 0 < parameter.ndim)
            self._last = (i, value if is_number else _filled(value, parameter))
        value = self._last[1]
        return chunk.of(value) if isinstance(value, Tensor) and value.ndim > 0 else value


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
) -> "AdamMetric":
    """(√v̂ + ε) · scale + TINY, with v̂ = v / (1 − β₂ᵗ) and, with amsgrad, the largest v so far.

    Args:
        optimizer: Adam or AdamW, after its step.
        group: One of its parameter groups.
        parameters: Weights of this group that have stepped.
        scale: See above.
        packed: See above.
    """
    moment = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
    states = [optimizer.state[parameter] for parameter in parameters]
    moments = [plain(state[moment]) for state in states]
    beta2 = float(group["betas"][1])
    factors = [scale / square_root(1 - beta2 ** steps(state)) for state in states]
    if packed is not None:
        moments, factors = packed.load(moments), packed.spread(factors)
    return AdamMetric(moments, factors, group["eps"] * scale + TINY)


@dataclass(frozen=True)
class AdamMetric:
    """√v · factor + ε of Adam's weights, with what is needed for it.

    Attributes:
        moments: v of each.
        factors: What √v is multiplied by: a number of each, or a tensor like v.
        epsilon: The same for all.
    """

    moments: list[Tensor]
    factors: list[float | Tensor]
    epsilon: float

    def __call__(self, chunks: Sequence[Chunk], space: Sequence[Tensor]) -> list[Tensor]:
        """The metric of these parts, in the space.

        Args:
            chunks: Parts of the weights.
            space: At least float32, for each.
        """
        roots = square_roots_into(space, [chunk.of(self.moments[chunk.tensor]) for chunk in chunks])
        factors: list[Any] = [self.factors[chunk.tensor] for chunk in chunks]
        if any(isinstance(factor, Tensor) for factor in factors):
            for root, factor, chunk in zip(roots, factors, chunks, strict=True):
                root.mul_(chunk.of(factor) if isinstance(factor, Tensor) and factor.ndim > 0 else factor)
        else:
            torch._foreach_mul_(roots, factors)
        torch._foreach_add_(roots, self.epsilon)
        return roots


def steps(state: Mapping[str, Any]) -> float | Tensor:
    """T of a weight, at least 1: a step that a gradient scaler skipped leaves it at 0. On a GPU it is not waited for.

    Args:
        state: Of the weight.
    """
    step = state["step"]
    if isinstance(step, Tensor) and step.device.type != "cpu":
        return step.to(torch.float32 if step.device.type == "mps" else torch.float64).clamp(min=1)
    return max(float(step), 1.0)


def square_root(value: float | Tensor) -> float | Tensor:
    """√ of a number, or of a tensor of one.

    Args:
        value: At least 0.
    """
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)


def plain(moment: Tensor) -> Tensor:
    """A tensor of an optimizer's state as real numbers: complex ones as pairs, those in 8 bits or less made floating.

    Of a DTensor it is this process's part.

    Args:
        moment: Such as a second moment.
    """
    if hasattr(type(moment), "__tensor_flatten__"):
        moment = local(moment)
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


def _part(chunk: Chunk, value: Tensor) -> Tensor:
    """What belongs to a part of a weight, of a tensor in its state: that part, or all if it has another shape."""
    value = plain(value)
    return chunk.of(value) if value.shape == chunk.shape else value


def _filled(value: float | Tensor, parameter: Tensor) -> Tensor:
    """The metric in the shape of the weight, or of its real and imaginary parts."""
    shape, whole_shape = real(local(parameter)).shape, local(parameter).shape
    if not isinstance(value, Tensor):
        return torch.full(shape, float(value), dtype=wide_type(parameter.dtype), device=parameter.device)
    value = wide(local(value))
    if value.shape == shape:
        return value
    if value.shape not in ((), whole_shape):
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
