"""The model that an importance is computed of: which weights of it, and how it is left as it was found."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from forgetless.errors import InputError


def selected(model: nn.Module, parameters: Iterable[Tensor | str] | None) -> dict[str, nn.Parameter]:
    """The wanted weights by name.

    Args:
        model: That holds them, unwrapped.
        parameters: Weights or names of them, frozen or not; None: all that require a gradient.

    Raises:
        InputError: If the model holds none of them, has no weight of a name, or they cannot be differentiated.
    """
    named = dict(model.named_parameters())
    if parameters is None:
        named = {name: weight for name, weight in named.items() if weight.requires_grad}
    else:
        all_names = dict(model.named_parameters(remove_duplicate=False))
        wanted = set()
        for weight in parameters:
            if isinstance(weight, str) and weight not in all_names:
                raise InputError(
                    f"Expected names of the model's weights, but got {weight!r}. See `model.named_parameters()`."
                )
            wanted.add(id(all_names[weight] if isinstance(weight, str) else weight))
        named = {name: weight for name, weight in named.items() if id(weight) in wanted}
    if not named:
        raise InputError(
            "Expected a model that holds weights to compute the Fisher of, but got one that holds none that require "
            "a gradient or are among `parameters`. Weights are matched by identity: pass the model itself, not a copy."
        )
    _refuse_what_cannot_be_differentiated(model, named)
    return named


def _refuse_what_cannot_be_differentiated(model: nn.Module, named: Mapping[str, nn.Parameter]) -> None:
    for name, weight in named.items():
        if not (weight.is_floating_point() or weight.is_complex()):
            raise InputError(
                f"Expected weights of floating point, but got {name!r} of {weight.dtype}, which has no gradient. "
                "Leave quantized weights out of `parameters`."
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_inference():
            raise InputError(
                f"Expected weights and buffers made outside of torch.inference_mode, but got {name!r}, of which "
                "autograd keeps no record. Build, load and first call the model outside of it, or use torch.no_grad."
            )


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and the mode of each module as it was afterwards.

    Args:
        model: The model.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def untouched(
    model: nn.Module, named: Mapping[str, nn.Parameter], generator: torch.Generator | None
) -> Iterator[torch.Generator]:
    """Evaluation mode, differentiable weights and a private random state for the time of the computation.

    Args:
        model: Left in the modes and with the buffers in which it was found.
        named: The wanted weights. Those that are frozen require a gradient meanwhile.
        generator: Given back, if there is one; else one in the state of the global generator.
    """
    frozen = [weight for weight in named.values() if not weight.requires_grad]
    buffers = [
        (module, name, buffer, buffer._version, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    device = next(iter(named.values())).device
    if generator is None:
        generator = torch.Generator(device)
        if device.type in {"cpu", "cuda"}:
            generator.set_state(torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device))
        else:  # a state of another kind of device has another form
            generator.manual_seed(torch.initial_seed())
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.inference_mode(False),
        torch.enable_grad(),
        _differentiable(model),
        evaluating(model),
    ):
        try:
            for weight in frozen:
                weight.requires_grad_(True)
            yield generator
        finally:
            for weight in frozen:
                weight.requires_grad_(False)
            for module, name, buffer, version, value in buffers:
                module._buffers[name] = buffer
                if buffer._version != version:
                    buffer.data.copy_(value)


def _differentiable(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """CuDNN differentiates recurrent layers in training mode only."""
    if any(isinstance(module, nn.RNNBase) and _is_on_cuda(module) for module in model.modules()):
        return torch.backends.cudnn.flags(enabled=False)
    return contextlib.nullcontext()


def _is_on_cuda(module: nn.Module) -> bool:
    return any(weight.is_cuda for weight in module.parameters())


# ---- wrapped models --------------------------------------------------------------------------------------------------


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel and torch.compile wrappers, whose parameter names carry no prefix.

    Args:
        model: Wrapped or not.
    """
    return list(layers_of_wrapping(model))[-1]


def layers_of_wrapping(model: nn.Module) -> Iterator[nn.Module]:
    """The model and what is inside of its wrappers, from the outside.

    Args:
        model: Wrapped or not.
    """
    yield model
    inner = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
    if isinstance(inner, nn.Module):
        yield from layers_of_wrapping(inner)
