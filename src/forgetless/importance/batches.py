"""Batches as people's loops give them, in the containers that the computation can take single examples from."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from forgetless.errors import InputError


def pair(batch: Any, model: nn.Module) -> tuple[Any, Any]:
    """Inputs and targets of a batch, in dicts, lists and tuples of tensors.

    Args:
        batch: As the user gave it.
        model: Whose inputs they are.

    Returns:
        Inputs and targets.

    Raises:
        InputError: If the batch is no pair, or holds something that has no examples along dim 0.
    """
    if isinstance(batch, Sequence) and len(batch) == 2 and _may_be_targets(batch[1]):
        inputs, targets = (plain(part) for part in batch)
        inputs = as_arguments(inputs, model)
        check_examples(inputs, targets)
        return inputs, targets
    kind = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, (Sequence, Mapping)) else type(batch).__name__
    if isinstance(batch, Sequence) and len(batch) == 2:
        kind += f" whose targets are a {type(batch[1]).__name__}"
    raise InputError(
        "Expected batches to be an iterable of pairs (inputs, targets) with targets a tensor, a list, tuple or dict of "
        f"tensors, or None, but got a {kind} in it. "
        "Pass [(inputs, targets)] for a single batch; inputs may be a tuple or a dict of several."
    )


def inputs_only(batch: Any, model: nn.Module) -> Any:
    """Inputs of a batch that has no targets.

    Args:
        batch: As the user gave it.
        model: Whose inputs they are.

    Returns:
        The inputs, in dicts, lists and tuples of tensors.

    Raises:
        InputError: If it holds something that has no examples along dim 0, or more than the model takes.
    """
    if isinstance(batch, list) and len(batch) == 1:  # what a DataLoader makes of a data set of single tensors
        batch = batch[0]
    inputs = as_arguments(plain(batch), model)
    if isinstance(inputs, tuple) and not _takes(model, len(inputs)):
        raise InputError(
            f"Expected batches of inputs alone, because there is no loss_fn, but got a tuple of {len(inputs)}, which "
            f"{type(model).__name__} does not take as its arguments. Leave the targets out, as in "
            "(inputs for inputs, targets in batches), or pass loss_fn."
        )
    check_examples(inputs, None)
    return inputs


def _may_be_targets(targets: Any) -> bool:
    return targets is None or any(isinstance(leaf, Tensor) for leaf in tree_leaves(plain(targets)))


def plain(tree: Any) -> Any:
    """The same tree, with every mapping that PyTorch does not know (a tokenizer's, say) as a dict.

    Args:
        tree: Of tensors and other things. Tensors made under `torch.inference_mode` are copied, because autograd
            cannot save them.
    """

    def leaf_as_known(leaf: Any) -> Any:
        if isinstance(leaf, Mapping):
            return plain(dict(leaf))
        return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf

    return tree_map(leaf_as_known, tree)


def as_arguments(inputs: Any, model: nn.Module) -> Any:
    """A list as a DataLoader's default collate makes it, one tensor per argument, as the tuple of them.

    Args:
        inputs: Of a batch.
        model: Whose inputs they are.

    Returns:
        The tuple, or the inputs as they were: a model that takes one argument takes the list itself.

    Raises:
        InputError: If the model could take the list as one argument and as several.
    """
    if not isinstance(inputs, list):
        return inputs
    as_several, as_one = _takes(model, len(inputs)), _takes(model, 1)
    if as_several and as_one and len(inputs) > 1:
        raise InputError(
            f"Expected inputs to be a tensor, a tuple of arguments or a dict of them, but got a list of {len(inputs)}, "
            f"which {type(model).__name__} can take as one argument and as {len(inputs)}. "
            "Pass tuple(inputs) for several arguments, (inputs,) for one."
        )
    return tuple(inputs) if as_several and not as_one else inputs


def _takes(model: nn.Module, num_arguments: int) -> bool:
    """Whether the model can be called with so many positional arguments."""
    try:
        inspect.signature(model.forward).bind(*range(num_arguments))
    except TypeError:
        return False
    except ValueError:  # no signature is known
        return True
    return True


def num_examples(*trees: Any) -> int:
    """B, the length of the first tensor.

    Args:
        trees: Of tensors and other things, with examples along dim 0.
    """
    return next((len(leaf) for tree in trees for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)), 0)


def check_examples(inputs: Any, targets: Any) -> None:
    """Refuse what examples cannot be taken from.

    Args:
        inputs: Of a batch, plain.
        targets: Of it, plain.

    Raises:
        InputError: If tensors differ in length along dim 0, or something else holds a batch.
    """
    tensors = [leaf for tree in (targets, inputs) for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    if not tensors:
        raise InputError(
            f"Expected inputs with at least one tensor, but got a {type(inputs).__name__} without any. "
            "Convert arrays with torch.as_tensor."
        )
    for leaf in tensors:
        if leaf.is_nested or leaf.layout != torch.strided:
            kind = "nested" if leaf.is_nested else "sparse"
            raise InputError(
                f"Expected dense tensors in the batches, but got a {kind} one. Pad it, or call to_dense()."
            )
    first = tensors[0]
    for leaf in tensors:
        if not leaf.ndim or leaf.shape[:1] != first.shape[:1]:
            name, other = ("targets", "inputs") if targets is None else ("inputs", "targets")
            raise InputError(
                f"Expected inputs and targets with examples along dim 0, but got {name} of shape {tuple(leaf.shape)} "
                f"and {other if targets is not None else 'inputs'} of shape {tuple(first.shape)}. "
                "Put the examples first in each; what is of the whole batch (offsets, a state) has no examples."
            )
    for tree in (inputs, targets):
        for kind in _unsliceable(tree, len(first)):
            raise InputError(
                f"Expected tensors with examples along dim 0 in tuples and dicts, but got {kind} in a batch, from "
                "which single examples cannot be taken. Convert it to tensors."
            )


def _unsliceable(tree: Any, num: int, root: bool = True) -> Iterator[str]:
    """What in a tree holds something of every example, but is no tensor."""
    if isinstance(tree, (list, tuple)):
        if not root and num > 1 and len(tree) == num and not any(isinstance(x, Tensor) for x in tree_leaves(tree)):
            yield f"a {type(tree).__name__} of {num} {type(tree[0]).__name__}"
        for value in tree:
            yield from _unsliceable(value, num, root=False)
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _unsliceable(value, num, root=False)
    elif not isinstance(tree, (Tensor, nn.Module)) and _holds_arrays(tree):
        yield f"a {type(tree).__module__}.{type(tree).__name__}"


def _holds_arrays(value: Any, depth: int = 3) -> bool:
    if isinstance(value, Tensor) or (hasattr(value, "__array__") and getattr(value, "ndim", 0) > 0):
        return True
    if depth == 0 or isinstance(value, (str, bytes, int, float, type, nn.Module)) or callable(value):
        return False
    if isinstance(value, Mapping):
        return any(_holds_arrays(inner, depth - 1) for inner in value.values())
    if isinstance(value, (list, tuple, set)):
        return any(_holds_arrays(inner, depth - 1) for inner in value)
    slots = [getattr(value, name, None) for name in getattr(type(value), "__slots__", ())]
    return any(_holds_arrays(inner, depth - 1) for inner in [*getattr(value, "__dict__", {}).values(), *slots])
