"""How much of a computation fits into a stated amount of memory: examples at a time, and weights at a time.

Beside the model, the batch and the result, a computation holds

    3 · A · m + 24 bytes · w

with A what autograd keeps of one example, m the examples at a time (a graph, and the gradients that flow through it
twice in the checks), and w the weights at a time (the gradients of single examples that a method is checked with).
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from forgetless.errors import InputError
from forgetless.importance.request import Request

_GRAPHS, _BYTES_PER_WEIGHT = 3, 24


class Parts(NamedTuple):
    """What is computed at a time.

    Attributes:
        num_examples: So many.
        blocks: Weights by name, in the model's order.
        chunk_numbers: As in `Request`.
    """

    num_examples: int
    blocks: list[dict[str, nn.Parameter]]
    chunk_numbers: int


def parts(request: Request, memory: float) -> Parts:
    """The largest parts of a computation that fit.

    Args:
        request: Of the first batch.
        memory: In bytes.

    Raises:
        InputError: If one example and the largest weight do not fit.
    """
    example = _GRAPHS * kept_bytes(request)
    largest = _BYTES_PER_WEIGHT * max(weight.numel() for weight in request.named.values())
    if not memory >= example + largest:
        raise InputError(
            f"Expected memory of at least {example + largest:,} bytes, for one example and the largest weight, but got "
            f"{memory:,}. Shorten the examples, checkpoint activations, or leave large weights out of parameters."
        )
    blocks = _blocks(request.named, max(largest, (memory - example) / 2) / _BYTES_PER_WEIGHT)
    held = _BYTES_PER_WEIGHT * max(sum(weight.numel() for weight in block.values()) for block in blocks)
    return Parts(int((memory - held) // max(1, example)) or 1, blocks, max(1, int(memory / 64)))


def _blocks(named: Mapping[str, nn.Parameter], num_weights: float) -> list[dict[str, nn.Parameter]]:
    """Neighbouring weights, so many numbers at most in each block."""
    blocks: list[dict[str, nn.Parameter]] = [{}]
    left = num_weights
    for name, weight in named.items():
        if blocks[-1] and weight.numel() > left:
            blocks.append({})
            left = num_weights
        blocks[-1][name] = weight
        left -= weight.numel()
    return blocks


def kept_bytes(request: Request) -> int:
    """What autograd keeps of one example until its backward pass, without weights and buffers: A.

    Inside checkpoints it keeps nothing but their inputs.

    Args:
        request: Of a batch, whose first example stands for all.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*request.model.parameters(), *request.model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    one = request.part(slice(0, 1))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = one.forward(one.inputs)
        loss = one.loss_fn(outputs, one.targets).sum()  # alive to the end, so that no place is used twice
    return sum(kept.values()) + loss.nbytes


@contextlib.contextmanager
def without_others(model: nn.Module, named: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Within it no other weights require a gradient, so that nothing is kept of the layers before these.

    Args:
        model: Whose weights they are.
        named: Weights that require one.
    """
    wanted = {id(weight) for weight in named.values()}
    others = [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in wanted]
    try:
        for weight in others:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in others:
            weight.requires_grad_(True)
