"""Weights of which each process holds a part, the DTensors of `torch.distributed.fsdp.fully_shard` (FSDP2) among them.

What is elementwise is computed on each process's own part; only sums over weights are told to the others. Everything
here lets plain tensors through as they are, and imports nothing: a weight can be a DTensor only where its module has
been imported.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from forgetless.errors import InputError


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, of which this process may hold a part only.

    Args:
        tensor: Any.

    >>> is_sharded(torch.zeros(2))
    False
    """
    if type(tensor) in (Tensor, nn.Parameter):  # as nearly always
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a DTensor, which may be empty; a plain tensor as it is.

    Changing it in place changes the DTensor. Gradients flow through it.

    Args:
        tensor: Any.
    """
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a DTensor, on every process; a plain tensor as it is.

    A sum that DTensors give has this process's part in it only, until it is gathered.

    Args:
        tensor: Any.
    """
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def laid_out(value: Tensor, weight: Tensor) -> Tensor:
    """A value for each element of a weight, laid out over the processes as the weight is.

    Args:
        value: Whole on every process, and the same there, or a DTensor.
        weight: In the same shape.

    Raises:
        InputError: If the value is a DTensor of other processes than the weight.
    """
    mesh: Any = getattr(weight, "device_mesh", None)
    placements: Any = getattr(weight, "placements", None)
    whole: Any = value
    if is_sharded(value):
        if not is_sharded(weight):
            return gathered(value)
        if whole.device_mesh != mesh:
            raise InputError(
                f"Expected a tensor on the processes of its weight, {mesh}, but got one on {whole.device_mesh}. "
                "Compute it from the model that is sharded in this way."
            )
        return value if whole.placements == placements else whole.redistribute(placements=placements)
    if not is_sharded(weight):
        return value
    # Every process has it all, so that each takes its part without asking.
    distribute = sys.modules["torch.distributed.tensor"].distribute_tensor
    return distribute(value.detach(), mesh, placements, src_data_rank=None)  # type: ignore[no-any-return]


class Sums:
    """Adds up what each process found of its parts of some weights: one message per need, however many weights.

    Args:
        weights: Plain ones are the same on every process, and count once; so do DTensors where they are replicated.

    >>> Sums([torch.zeros(2), torch.zeros(3)])(torch.tensor([1.0, 2.0]))
    tensor(3.)
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        groups: dict[Any, list[int]] = {}
        for i, weight in enumerate(weights):
            whole: Any = weight
            sharded = is_sharded(weight)
            kind = (whole.device_mesh, tuple(p.is_shard() for p in whole.placements)) if sharded else None
            groups.setdefault(kind, []).append(i)
        self._groups = groups

    @property
    def is_local(self) -> bool:
        """Whether nothing has to be told to other processes."""
        return all(kind is None for kind in self._groups)

    def __call__(self, numbers: Tensor) -> Tensor:
        """The sum over the whole weights, the same on every process.

        Args:
            numbers: Of this process's part of each weight, along dim 0.

        Returns:
            Σ over dim 0 and, where parts are different, over processes.
        """
        if self.is_local:
            return numbers.sum(0)
        totals = [added(numbers[places].sum(0), kind) for kind, places in self._groups.items()]
        return torch.stack(totals).sum(0)

    def each(self, numbers: Tensor) -> Tensor:
        """As a call, but for each weight.

        Args:
            numbers: Of this process's part of each weight, along dim 0.

        Returns:
            Of the same shape.
        """
        if self.is_local:
            return numbers
        result = numbers.clone()
        for kind, places in self._groups.items():
            result[places] = added(numbers[places], kind)
        return result


def added(numbers: Tensor, kind: tuple[Any, tuple[bool, ...]] | None) -> Tensor:
    """The sum over processes of what each of them found.

    Args:
        numbers: Of this process.
        kind: A device mesh and, for each of its dimensions, whether processes along it hold different parts; None if
            all is on every process.
    """
    if kind is None or not any(kind[1]):
        return numbers
    mesh, differ = kind
    # Offloaded weights are not where their processes exchange numbers.
    total = numbers.to(mesh.device_type, copy=True)
    for dim, differs in enumerate(differ):
        if differs:
            dist.all_reduce(total, group=mesh.get_group(dim))
    return total.to(numbers.device)


def anywhere(found: Tensor) -> bool:
    """Whether an element is true, on any process.

    Args:
        found: Boolean; whole or sharded.

    >>> anywhere(torch.tensor([False, True])), anywhere(torch.tensor([False]))
    (True, False)
    """
    if not is_sharded(found):
        return bool(found.any())
    return bool(Sums([found])(local(found).any().to(torch.int64).unsqueeze(0)))


def largest(number: float, weights: Sequence[Tensor]) -> float:
    """The largest of the numbers that the processes which shard some weights have; infinite where one is not a number.

    Args:
        number: Of this process.
        weights: Sharded or whole; where all are whole, the number is what is returned.
    """
    meshes: dict[Any, None] = {weight.device_mesh: None for weight in weights if is_sharded(weight)}  # type: ignore[attr-defined]
    if not meshes:
        return number
    for mesh in meshes:
        value = torch.tensor(math.inf if math.isnan(number) else number, dtype=torch.float64, device=mesh.device_type)
        for dim in range(mesh.ndim):
            dist.all_reduce(value, dist.ReduceOp.MAX, group=mesh.get_group(dim))
        number = value.item()
    return number


# ---- modules ---------------------------------------------------------------------------------------------------------


def fsdp_modules(modules: Iterable[nn.Module]) -> Iterator[Any]:
    """The modules that `fully_shard` was applied to, each once.

    Args:
        modules: With all that is inside of them.
    """
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    if kind is not None:
        yield from dict.fromkeys(m for module in modules for m in module.modules() if isinstance(m, kind))


def reshard(*modules: nn.Module) -> None:
    """Let modules hold their sharded weights: after a forward pass without a backward one, some hold whole copies.

    Nothing is told to other processes.

    Args:
        modules: Any; only those that `fully_shard` was applied to, and those inside, change.
    """
    for module in fsdp_modules(modules):
        module.reshard()


def refuse_fsdp1(*modules: nn.Module) -> None:
    """Refuse modules whose weights are not tensors of their own.

    Args:
        modules: With all that is inside of them.

    Raises:
        InputError: If one is wrapped in FullyShardedDataParallel.
    """
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    if kind is not None and any(isinstance(m, kind) for module in modules for m in module.modules()):
        raise InputError(
            "Expected a model sharded by torch.distributed.fsdp.fully_shard (FSDP2), or a whole one, but got one in "
            "FullyShardedDataParallel (FSDP1), which flattens the weights of several layers into one tensor. "
            "Use fully_shard."
        )
