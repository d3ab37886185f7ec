"""Activation checkpoints of models that have them in training mode only, as Hugging Face's do."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from forgetless.importance.method import same_outputs
from forgetless.importance.request import Request


@contextlib.contextmanager
def as_in_training(request: Request) -> Iterator[None]:
    """Checkpoint the layers that are checkpointed in training, if the outputs stay those of eval mode.

    Such a layer looks at its own `training`; the modules inside of it, and so dropout, stay in eval mode. Checkpoints
    are not reentrant within, because gradients are taken of what is inside.

    Args:
        request: Of a batch, of which one example is tried. Its model is in eval mode.
    """
    layers = _checkpointed(request.model)
    found = [vars(layer).get("_gradient_checkpointing_func") for layer in layers]
    one = request.part(slice(0, 1))
    try:
        before = one.forward(one.inputs) if layers else None
        _switch(layers, True, [partial(checkpoint, use_reentrant=False)] * len(layers))
        if layers and not same_outputs(one.forward(one.inputs), before):
            _switch(layers, False, found)
        del before
        yield
    finally:
        _switch(layers, False, found)


def _switch(layers: list[nn.Module], training: bool, functions: list[Any]) -> None:
    for layer, function in zip(layers, functions, strict=True):
        layer.training = training
        vars(layer)["_gradient_checkpointing_func"] = function


def _checkpointed(model: nn.Module) -> list[nn.Module]:
    """The innermost modules with checkpoints of their own."""

    def is_one(module: nn.Module) -> bool:
        set_by_user = getattr(module, "gradient_checkpointing", False) is True
        return set_by_user and "_gradient_checkpointing_func" in vars(module)

    return [
        m for m in model.modules() if is_one(m) and not any(is_one(inner) for inner in m.modules() if inner is not m)
    ]
