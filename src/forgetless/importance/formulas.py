"""The gradient of one example with respect to a layer's weights, from the layer's input a and its output's gradient g.

PyTorch's own layers are known by their type. Others are known by what they hold and do, whatever library they are from:

| kind | holds | its output | from |
|---|---|---|---|
| matrix | `weight` (in, out) or (out, in), perhaps `bias` (out,) | x W + b | Hugging Face's `Conv1D` |
| lookup | an embedding's `weight` | its rows times one number | Gemma's embedding |
| scale | vectors p as wide as the input, or numbers | affine in each: c(x) + p ⊙ h(x) | `LlamaRMSNorm`, layer scales |

A matrix and a lookup show in the output of one row. That a layer is affine in its vectors is a guess, which the
comparison with gradients of single examples (`forgetless.importance.method`) has to confirm, as it has to for every
other formula.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetless.importance.uses import Direct, Lookup, Outer, Use

Uses = Iterator[tuple[Tensor | None, Use]]
Formula = Callable[[Any, Tensor, Tensor], Uses]
"""How a call used the layer's own weights, by the layer, its input and the gradient of its output, of B examples."""


def may_have_formula(layer: nn.Module) -> bool:
    """Whether there can be a formula for a layer's own weights, as far as the layer alone tells.

    Args:
        layer: That holds weights of its own.
    """
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.scale_grad_by_freq):
        return False
    # A BatchNorm without running statistics mixes the examples of a batch.
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
        return False
    known = _by_type(layer) is not None or isinstance(layer, nn.Embedding)
    return known or _is_matrix(layer) or _is_scale(layer)


def formula_of(layer: nn.Module, inputs: Tensor, output: Tensor) -> Formula | None:
    """The formula for one call of a layer, or None if there is none.

    Args:
        layer: That may have a formula.
        inputs: Of the call, examples along dim 0.
        output: Of the call.
    """
    formula = _by_type(layer)
    if formula is None and isinstance(layer, nn.Embedding):
        return _lookup_formula(layer, inputs, output)
    if formula is None and _is_matrix(layer):
        return _matrix_formula(layer, inputs, output)
    if formula is None and _is_scale(layer):
        fits = inputs.is_floating_point() and inputs.shape == output.shape and inputs.ndim > 1
        return _scale if fits and all(_spans(weight, inputs) for weight in _own(layer).values()) else None
    return formula


def _by_type(layer: nn.Module) -> Formula | None:
    # A subclass may compute something else.
    types = (known for known in _FORMULAS if isinstance(layer, known) and type(layer).forward is known.forward)
    return next((_FORMULAS[known] for known in types), None)


def _own(layer: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in layer._parameters.items() if weight is not None}


# ---- PyTorch's own layers --------------------------------------------------------------------------------------------


def _linear(layer: nn.Linear, inputs: Tensor, gradient: Tensor) -> Uses:
    gradient = gradient.flatten(1, -2) if gradient.ndim > 2 else gradient.unsqueeze(1)
    inputs = inputs.reshape(len(inputs), -1, inputs.shape[-1])
    yield layer.weight, Outer(inputs.unsqueeze(1), gradient.unsqueeze(1))
    yield layer.bias, Direct(gradient.sum(1))


_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def _convolution(layer: _Convolution, inputs: Tensor, gradient: Tensor) -> Uses:
    batch, groups = len(inputs), layer.groups
    gradient = gradient.reshape(batch, groups, layer.out_channels // groups, -1)
    patches = _patches(layer, inputs).reshape(batch, groups, -1, gradient.shape[-1])
    yield layer.weight, Outer(patches.mT, gradient.mT)
    yield layer.bias, Direct(gradient.sum(-1).flatten(1))


def _embedding(layer: nn.Embedding, inputs: Tensor, gradient: Tensor) -> Uses:
    gradient = gradient.reshape(len(inputs), -1, gradient.shape[-1])
    index = inputs.reshape(len(inputs), -1)
    if layer.padding_idx is not None:
        gradient = gradient * (index != layer.padding_idx).unsqueeze(-1)
    yield layer.weight, Lookup(index, gradient)


def _layer_norm(layer: nn.LayerNorm, inputs: Tensor, gradient: Tensor) -> Uses:
    scaled = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    first = inputs.ndim - len(layer.normalized_shape)
    yield layer.weight, Direct(_summed_up_to(first, gradient * scaled))
    yield layer.bias, Direct(_summed_up_to(first, gradient))


def _rms_norm(layer: nn.RMSNorm, inputs: Tensor, gradient: Tensor) -> Uses:
    scaled = F.rms_norm(inputs, layer.normalized_shape, eps=layer.eps)
    yield layer.weight, Direct(_summed_up_to(inputs.ndim - len(layer.normalized_shape), gradient * scaled))


def _channel_norm(layer: Any, inputs: Tensor, gradient: Tensor) -> Uses:
    if isinstance(layer, nn.GroupNorm):
        scaled = F.group_norm(inputs, layer.num_groups, eps=layer.eps)
    else:
        scaled = F.batch_norm(inputs, layer.running_mean, layer.running_var, eps=layer.eps)
    shape = (len(inputs), inputs.shape[1], -1)
    yield layer.weight, Direct((gradient * scaled).reshape(shape).sum(-1))
    yield layer.bias, Direct(gradient.reshape(shape).sum(-1))


_FORMULAS: dict[type[nn.Module], Formula] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _channel_norm,
    nn.BatchNorm1d: _channel_norm,
    nn.BatchNorm2d: _channel_norm,
    nn.BatchNorm3d: _channel_norm,
}


def _summed_up_to(dim: int, values: Tensor) -> Tensor:
    """Sum over the dims between the examples' and `dim`."""
    return values.flatten(1, dim - 1).sum(1) if dim > 1 else values


def _patches(layer: _Convolution, inputs: Tensor) -> Tensor:
    """What each output position of a convolution sees: (B, C·kernel, positions)."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    inputs = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    strides = inputs.stride()[2:]
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    positions = [(n - r - 1) // step + 1 for n, r, step in zip(inputs.shape[2:], reach, layer.stride, strict=True)]
    # The same as F.unfold, which is several times slower and knows images only.
    windows = inputs.as_strided(
        (*inputs.shape[:2], *layer.kernel_size, *positions),
        (
            *inputs.stride()[:2],
            *(d * stride for d, stride in zip(layer.dilation, strides, strict=True)),
            *(step * stride for step, stride in zip(layer.stride, strides, strict=True)),
        ),
    )
    return windows.reshape(len(inputs), inputs.shape[1] * math.prod(layer.kernel_size), math.prod(positions))


# ---- layers known by what they do ------------------------------------------------------------------------------------


def _lookup_formula(layer: nn.Embedding, inputs: Tensor, output: Tensor) -> Formula | None:
    """That of s W[index], with the number s that one row of the output shows."""
    if inputs.is_floating_point() or not inputs.numel() or output.shape != (*inputs.shape, layer.embedding_dim):
        return None
    with torch.no_grad():
        row, found = layer.weight[inputs.flatten()[0]], output.detach().flatten(0, -2)[0]
        scale = ((row * found).sum() / row.square().sum()).nan_to_num(1.0)
        return partial(_scaled_lookup, scale) if _is_near(scale * row, found) else None


def _scaled_lookup(scale: Tensor, layer: nn.Embedding, inputs: Tensor, gradient: Tensor) -> Uses:
    return _embedding(layer, inputs, gradient * scale)


def _is_matrix(layer: nn.Module) -> bool:
    own = _own(layer)
    shapes = {name: weight.ndim for name, weight in own.items()}
    return shapes in ({"weight": 2}, {"weight": 2, "bias": 1}) and not isinstance(layer, nn.Embedding)


def _matrix_formula(layer: nn.Module, inputs: Tensor, output: Tensor) -> Formula | None:
    """That of x W + b or x Wᵀ + b, whichever one row of the output shows."""
    weight, bias = layer._parameters["weight"], layer._parameters.get("bias")
    if weight is None or not inputs.is_floating_point() or inputs.ndim < 2 or inputs.shape[:-1] != output.shape[:-1]:
        return None
    with torch.no_grad():
        row, found = inputs.flatten(0, -2)[:1], output.detach().flatten(0, -2)[:1]
        for matrix, is_transposed in ((weight, False), (weight.T, True)):
            if matrix.shape == (output.shape[-1], inputs.shape[-1]) and _is_near(
                F.linear(row.to(matrix.dtype), matrix, bias), found
            ):
                return partial(_matrix, is_transposed)
    return None


def _is_near(expected: Tensor, found: Tensor) -> bool:
    tolerance = {torch.float64: 1e-8, torch.float32: 1e-3}.get(found.dtype, 0.05)
    return torch.allclose(expected.to(found.dtype), found, rtol=tolerance, atol=tolerance * found.abs().max().item())


def _matrix(is_transposed: bool, layer: Any, inputs: Tensor, gradient: Tensor) -> Uses:
    batch, bias = len(inputs), layer._parameters.get("bias")
    inputs = inputs.reshape(batch, 1, -1, inputs.shape[-1])
    gradient = gradient.reshape(batch, 1, -1, gradient.shape[-1])
    yield layer.weight, Outer(gradient, inputs) if is_transposed else Outer(inputs, gradient)
    yield bias, Direct(gradient.sum((1, 2)))


def _is_scale(layer: nn.Module) -> bool:
    own = _own(layer)
    return bool(own) and not any(layer.children()) and all(weight.ndim == 1 for weight in own.values())


def _spans(weight: Tensor, inputs: Tensor) -> bool:
    return weight.numel() == 1 or weight.shape == inputs.shape[-1:]


class _Forward(nn.Module):
    """A layer without the hooks that are on it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        """What the layer computes."""
        found: Tensor = self.layer.forward(inputs)
        return found


def _scale(layer: nn.Module, inputs: Tensor, gradient: Tensor) -> Uses:
    """Of c(x) + p ⊙ h(x): Σ_t g_t ⊙ h(x_t), with h the difference between the outputs at p = 1 and p = 0."""
    forward = _Forward(layer)
    for name, weight in _own(layer).items():
        one, zero = (weight.new_full(weight.shape, value, dtype=inputs.dtype) for value in (1, 0))
        at_one, at_zero = (
            torch.func.functional_call(forward, {f"layer.{name}": value}, (inputs,)) for value in (one, zero)
        )
        slope = (at_one - at_zero).to(gradient.dtype) * gradient
        yield weight, Direct(slope.reshape(len(inputs), -1, weight.numel()).sum(1))
