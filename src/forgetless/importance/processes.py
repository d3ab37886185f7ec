"""Several processes that compute an importance together, each from examples of its own."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from types import MethodType
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from forgetless.errors import InputError
from forgetless.importance.model import layers_of_wrapping
from forgetless.sharding import Sums, added, fsdp_modules, gathered, is_sharded, laid_out, local, refuse_fsdp1, reshard

Processes = Any
"""The process group of DistributedDataParallel, the device mesh of `fully_shard`, or None."""


def processes_of(model: nn.Module) -> Processes:
    """The processes that train a model together, as its wrapping tells.

    Args:
        model: Wrapped in DistributedDataParallel, sharded by `fully_shard`, or neither. What is sharded holds its
            parts afterwards. A module that is whole in every process may name their group as `examples_from`.

    Raises:
        InputError: If its weights are in parts in another way, or away from the devices that exchange them.
    """
    refuse_fsdp1(model)
    for layer in layers_of_wrapping(model):
        if isinstance(layer, DistributedDataParallel):
            return layer.process_group
        if (group := getattr(layer, "examples_from", None)) is not None:
            return group
    reshard(model)
    meshes: dict[Any, None] = {}
    gathered_there = {id(p) for module in fsdp_modules([model]) for p in module.parameters()}
    for name, parameter in model.named_parameters():
        if not is_sharded(parameter):
            continue
        weight: Any = parameter
        placements = weight.placements
        meshes[weight.device_mesh] = None
        # Of data parallelism alone: copies along all dimensions of the mesh but the last.
        other = any(p.is_shard() for p in placements[:-1]) or any(p.is_partial() for p in placements)
        if other or id(parameter) not in gathered_there:
            raise InputError(
                f"Expected weights that are whole or sharded by fully_shard alone, but got {name!r} with placements "
                f"{placements}, as tensor parallelism has them. Compute the importance of the whole model, before "
                "parallelize_module: consolidate takes it as it is."
            )
        if weight.device.type != weight.device_mesh.device_type:
            raise InputError(
                f"Expected sharded weights on {weight.device_mesh.device_type}, where their processes exchange them, "
                f"but got {name!r} on {weight.device.type} (CPUOffloadPolicy). Compute the importance of the whole "
                "model, before fully_shard: consolidate takes it as it is."
            )
    if len(meshes) > 1:
        raise InputError(
            f"Expected all sharded weights on the same processes, but got them on {len(meshes)} device meshes. "
            "Compute the importance of the whole model, before fully_shard: consolidate takes it as it is."
        )
    return next(iter(meshes), None)


@contextlib.contextmanager
def whole_weights(model: nn.Module, named: Mapping[str, nn.Parameter]) -> Iterator[dict[str, nn.Parameter]]:
    """The model with whole weights in place of sharded ones, in their own type, and computing without other processes.

    Which forward and backward passes an importance takes depends on a process's own examples, so that none may wait
    for another's. Each process holds all weights meanwhile.

    Args:
        model: Sharded by `fully_shard`, or whole.
        named: Some of its weights.

    Yields:
        The same weights, whole.

    Raises:
        InputError: If the model shards and gathers its weights by itself, in spite of all.
    """
    modules = list(model.modules())
    places = [(m, name, w) for m in modules for name, w in m._parameters.items() if w is not None and is_sharded(w)]
    wholes: dict[int, nn.Parameter] = {}
    with torch.inference_mode(False), torch.no_grad():
        for _, _, weight in places:
            if id(weight) not in wholes:
                wholes[id(weight)] = nn.Parameter(gathered(weight), requires_grad=weight.requires_grad)
    with _without_fsdp(modules if places else []):
        try:
            for module, name, weight in places:
                setattr(module, name, wholes[id(weight)])
            yield {name: wholes.get(id(weight), weight) for name, weight in named.items()}
            if any(module._parameters[name] is not wholes[id(weight)] for module, name, weight in places):
                raise InputError(
                    "Expected a model whose weights are gathered by hooks of its forward pass, but got one that "
                    "gathers them in it, by unshard(). Call that before the forward pass."
                )
        finally:
            reshard(model)
            for module, name, weight in places:
                setattr(module, name, weight)


@contextlib.contextmanager
def _without_fsdp(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it `fully_shard` does nothing in a forward pass: no hooks, no methods that were registered with it."""
    changed: list[tuple[nn.Module, str, Any]] = []
    try:
        for module in modules:
            for name, value in list(module.__dict__.items()):
                if name in {"_forward_pre_hooks", "_forward_hooks"} and any(map(_is_of_fsdp, value.values())):
                    others = type(value)((key, hook) for key, hook in value.items() if not _is_of_fsdp(hook))
                elif isinstance(value, MethodType) and _is_of_fsdp(value):
                    others = cast("Any", value).__wrapped__  # by register_fsdp_forward_method
                else:
                    continue
                changed.append((module, name, value))
                module.__dict__[name] = others
        yield
    finally:
        for module, name, value in changed:
            module.__dict__[name] = value


def _is_of_fsdp(function: Any) -> bool:
    function = getattr(function, "__func__", function)
    names = (getattr(function, "__module__", None), getattr(function, "__globals__", {}).get("__name__"))
    return any(str(name).startswith("torch.distributed.fsdp.") for name in names)


@contextlib.contextmanager
def failing_together(processes: Processes, device: torch.device) -> Iterator[None]:
    """Within it an error of this process is told to the others, which wait for its part in `summed`.

    Args:
        processes: By `processes_of`.
        device: Of the weights.
    """
    try:
        yield
    except Exception:
        if processes is not None:
            _added_up(torch.tensor([0, 1], device=device), processes)
        raise


def summed(
    totals: dict[str, Tensor], num_examples: int, weights: Mapping[str, Tensor], processes: Processes
) -> tuple[dict[str, Tensor], int]:
    """The sums of all processes.

    Args:
        totals: Of this process's examples, in the shapes of whole weights. Overwritten.
        num_examples: That they are of; may differ between processes, and be 0.
        weights: By the same names, sharded or whole.
        processes: By `processes_of`.

    Returns:
        Totals, laid out as the weights are, and number of examples, of all processes.

    Raises:
        InputError: If another process has failed.
    """
    if processes is None:
        return totals, num_examples
    device = next(iter(totals.values())).device
    count, num_failed = _added_up(torch.tensor([num_examples, 0], device=device), processes).tolist()
    if num_failed:
        raise InputError(
            f"Expected every process to compute its part of the importance, but got an error in {num_failed} of them. "
            "See the messages of the others."
        )
    return {name: _added_up(totals.pop(name), processes, weights[name]) for name in list(totals)}, int(count)


def _added_up(tensor: Tensor, processes: Processes, weight: Tensor | None = None) -> Tensor:
    """The sum over processes, as a weight is laid out; whole without one."""
    if isinstance(processes, dist.ProcessGroup):
        dist.all_reduce(tensor, group=processes)
        return tensor
    if weight is None or not is_sharded(weight):
        return added(tensor, (processes, (True,) * processes.ndim))
    return laid_out(partial_sums(tensor, processes), weight)


def partial_sums(tensor: Tensor, mesh: Any) -> Tensor:
    """What each process of a device mesh holds, as a DTensor that stands for their sum.

    Args:
        tensor: Of this process.
        mesh: Of all.
    """
    from torch.distributed.tensor import DTensor, Partial

    return DTensor.from_local(tensor, mesh, [Partial()] * mesh.ndim, run_check=False)


def told_of(totals: Mapping[str, Tensor]) -> list[tuple[bool, bool]]:
    """Of each tensor, whether an element is not finite, and whether one is not 0: on every process the same.

    Args:
        totals: Whole or sharded.
    """
    values = [local(total) for total in totals.values()]
    device = values[0].device
    found = torch.stack([torch.stack([(~torch.isfinite(v)).any(), v.any()]).to(device) for v in values])
    everywhere = Sums(list(totals.values())).each(found.to(torch.int64))
    return [(bool(bad), bool(some)) for bad, some in everywhere.tolist()]
