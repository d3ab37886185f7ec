"""Batch normalisation over the rows that several processes hold of one batch, on any device.

PyTorch's SyncBatchNorm does the same on GPUs only, and takes the place of the layers.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class WholeBatchStatistics(TorchFunctionMode):
    """Within it `F.batch_norm` in training mode takes mean and variance over the rows of all processes.

    What every process computes alike, such as the nodes of one graph, has the same statistics within it as without.

    Args:
        size: Processes; all of them call it equally often, with equally many rows.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def __torch_function__(
        self, function: Any, types: Sequence[type], arguments: Sequence[Any] = (), named: Any = None
    ) -> Any:
        """The function's result, or for `F.batch_norm` that of `whole_batch_norm`."""
        if function is F.batch_norm:
            return whole_batch_norm(*arguments, **(named or {}), size=self._size)
        return function(*arguments, **(named or {}))


def whole_batch_norm(
    inputs: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    size: int,
) -> Tensor:
    """`F.batch_norm` of a batch of which each process has as many rows.

        x̂ = (x − m) / √(v + eps),    m = mean of x, v = mean of (x − m)², over rows, positions and processes

    The gradient goes through m and v to the rows of all processes: that of Σ L over processes is what each has of it.

    Args:
        inputs: x, (rows, C, …).
        running_mean: (C,), as of `F.batch_norm`, updated with the whole batch's.
        running_var: The same of the variance; n/(n − 1) v, as usual.
        weight: (C,).
        bias: (C,).
        training: Whether the batch's own statistics are taken; else nothing is told to other processes.
        momentum: Of the running ones.
        eps: Added to v.
        size: Processes.

    Returns:
        In the shape of the inputs.
    """
    if not training:
        return F.batch_norm(inputs, running_mean, running_var, weight, bias, training, momentum, eps)
    dims = [0, *range(2, inputs.ndim)]
    shape = [1, -1, *[1] * (inputs.ndim - 2)]
    mean = _Sum.apply(inputs.mean(dims)) / size  # type: ignore[no-untyped-call]
    centred = inputs - mean.view(shape)
    variance = _Sum.apply(centred.square().mean(dims)) / size  # type: ignore[no-untyped-call]
    number = size * inputs.numel() // inputs.shape[1]
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean, momentum)
        if running_var is not None:
            running_var.lerp_(variance * (number / (number - 1)), momentum)
    found: Tensor = centred * (variance + eps).rsqrt().view(shape)
    found = found if weight is None else found * weight.view(shape)
    return found if bias is None else found + bias.view(shape)


class _Sum(torch.autograd.Function):
    """The sum over processes, whose gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004
        return _summed(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return _summed(gradient)


def _summed(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total
