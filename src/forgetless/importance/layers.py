"""The fast way: sums of powers of per-example gradients from the formulas of the layers that hold most weights.

From a layer's input a_n and the gradient g_n of its output, the gradient of example n is g_n a_nᵀ. Where the layer is
used once per example the sum of squares needs no per-example gradient at all, Σ_n (g_n a_nᵀ)² = (g²)ᵀ(a²). A weight
that is used several times per example (a recurrent net, a convolution's positions, tied weights) needs the sum over its
uses *before* squaring.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from forgetless.importance.request import Power, Request, chunks, raised, wide_type, zeros


class UnknownLayerError(Exception):
    """The model holds a wanted weight in something other than a known layer, or mixes its examples."""


class _Outer(NamedTuple):
    """Per-example gradient Σ_t g_t a_tᵀ, in `groups` blocks: (B, G, T, in) and (B, G, T, out) → (B, G·out, in)."""

    inputs: Tensor
    gradients: Tensor


class _Lookup(NamedTuple):
    """Per-example gradient with rows Σ_{t: rows_t = row} g_t: (B, T) and (B, T, width) → (B, rows, width)."""

    rows: Tensor
    gradients: Tensor


class _Direct(NamedTuple):
    """The per-example gradient itself: (B, *shape)."""

    gradients: Tensor


_Use = _Outer | _Lookup | _Direct
_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class _Call(NamedTuple):
    """One use of a layer. The output is held as an edge of the graph: what follows may change it in place."""

    layer: nn.Module
    inputs: Tensor
    output: GradientEdge


def by_layer(request: Request) -> dict[str, Tensor]:
    """Sums of powers of per-example gradients from the inputs and output gradients of each layer.

    Args:
        request: Of any kind but `batch`.

    Returns:
        Σ_n |∂ℓ_n/∂θ|^power by parameter name.

    Raises:
        UnknownLayerError: If there is no formula for the model, or it moves examples to other rows between its layers.
    """
    outputs, calls = _watched_forward(request)
    totals = zeros(request.named)
    if not calls:
        return totals
    for targets, shares in request.labelled(outputs):
        losses = request.example_losses(outputs, targets)
        if shares is not None:  # p (∂ℓ)² = (√p ∂ℓ)²
            losses = losses * shares.sqrt()
        gradients = torch.autograd.grad(
            losses.sum(),
            [call.output for call in calls],
            allow_unused=True,
            retain_graph=request.kind == "exact" or request.may_move_rows,
        )
        if request.may_move_rows and not _stay_in_place(losses, calls, gradients, request.kind == "exact"):
            raise UnknownLayerError
        with torch.no_grad():
            uses = _uses_by_name(request.named, calls, gradients)
            for name in list(uses):
                totals[name] += _sum_of_powers(uses.pop(name), request.named[name].shape, request.power)
    return totals


def rows_stay_in_place(request: Request) -> bool:
    """Whether row n of every layer's output acts on the loss of example n alone.

    With the losses weighted by w_n the gradient of row n is then w_n times what it was.

    Args:
        request: Of the true labels.

    Returns:
        True also where there is no formula for the model on these examples, so that its layers tell nothing.
    """
    try:
        outputs, calls = _watched_forward(request)
    except UnknownLayerError:
        return True
    losses = request.example_losses(outputs, request.targets)
    if not calls or not losses.requires_grad:
        return True
    edges = [call.output for call in calls]
    gradients = torch.autograd.grad(losses.sum(), edges, allow_unused=True, retain_graph=True)
    return _stay_in_place(losses, calls, gradients, retain_graph=False)


def _stay_in_place(
    losses: Tensor, calls: Sequence[_Call], gradients: Sequence[Tensor | None], retain_graph: bool
) -> bool:
    # Neighbours differ much, so that rows which change places with their neighbours show.
    order = torch.randperm(len(losses), generator=torch.Generator().manual_seed(0))
    weights = (1 + order / len(losses)).to(losses)
    edges = [call.output for call in calls]
    weighted = torch.autograd.grad((losses * weights).sum(), edges, allow_unused=True, retain_graph=retain_graph)
    return all(
        _is_scaled(found, gradient, weights)
        for gradient, found in zip(gradients, weighted, strict=True)
        if gradient is not None and found is not None
    )


def may_move_rows(request: Request) -> bool:
    """Whether there is an operation before one of the layers that takes rows by their numbers, such as a sort.

    Which rows it moves can depend on the values of the examples.

    Args:
        request: Of some examples.
    """
    try:
        _, calls = _watched_forward(request)
    except UnknownLayerError:
        return False
    nodes = [call.output.node for call in calls]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if node.name().startswith(_MOVES):
            return True
        before = {follower for follower, _ in node.next_functions if follower is not None} - seen
        seen |= before
        nodes += before
    return False


_MOVES = ("Index", "Gather", "Scatter", "Take", "MaskedSelect", "MaskedScatter", "Sort", "Topk", "Stack")


def _is_scaled(found: Tensor, gradient: Tensor, weights: Tensor) -> bool:
    """Whether each row is its weight times what it was, up to rounding."""
    precise = not torch.is_autocast_enabled(found.device.type)
    tolerances = {torch.float64: (1e-6, 1e-10), torch.float32: (1e-3, 1e-5)} if precise else {}
    relative, noise = tolerances.get(found.dtype, (0.05, 0.01))
    expected = gradient.flatten(1) * weights.to(gradient.dtype).unsqueeze(1)
    difference = (found.flatten(1) - expected).abs().nan_to_num(0, 0, 0)
    size = expected.abs().nan_to_num(0, 0, 0)
    return bool((difference.amax(1) <= relative * size.amax(1) + noise * size.max()).all()) if size.numel() else True


def _watched_forward(request: Request) -> tuple[Any, list[_Call]]:
    """The outputs of the model, and how it called the layers that hold the wanted weights."""
    calls: list[_Call] = []
    num_examples = request.num_examples

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        inputs: Tensor = args[0] if args else kwargs["input"]
        if inputs.shape[:1] != (num_examples,) or not output.requires_grad:
            raise UnknownLayerError
        calls.append(_Call(layer, inputs.detach(), get_gradient_edge(output)))

    handles = [layer.register_forward_hook(note, prepend=True, with_kwargs=True) for layer in _layers_holding(request)]
    try:
        return request.forward(request.inputs), calls
    finally:
        for handle in handles:
            handle.remove()


def _uses_by_name(
    named: Mapping[str, nn.Parameter], calls: Sequence[_Call], gradients: Sequence[Tensor | None]
) -> dict[str, list[_Use]]:
    """How the calls used the wanted weights; `gradients` are those of the calls' outputs."""
    names = {id(weight): name for name, weight in named.items()}
    uses: defaultdict[str, list[_Use]] = defaultdict(list)
    for call, gradient in zip(calls, gradients, strict=True):
        if gradient is None:
            continue
        gradient = gradient.to(wide_type(gradient.dtype))
        inputs = call.inputs.to(gradient.dtype) if call.inputs.is_floating_point() else call.inputs
        for weight, use in _uses(call.layer, inputs, gradient):
            if id(weight) in names:
                uses[names[id(weight)]].append(use)
    return uses


def _layers_holding(request: Request) -> list[nn.Module]:
    """The known layers that own the wanted weights; every weight must have one."""
    wanted = {id(weight) for weight in request.named.values()}
    layers = [
        module
        for module in request.model.modules()
        if any(id(weight) in wanted for weight in module.parameters(recurse=False))
    ]
    if not all(_is_known(layer) for layer in layers) or any(w.is_complex() for w in request.named.values()):
        raise UnknownLayerError
    return layers


_KNOWN = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.Embedding,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
)


def _is_known(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.scale_grad_by_freq):
        return False
    # A BatchNorm without running statistics mixes the examples of a batch.
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
        return False
    # A subclass may compute something else.
    return any(type(layer).forward is known.forward for known in _KNOWN if isinstance(layer, known))


def _uses(layer: nn.Module, inputs: Tensor, gradient: Tensor) -> Iterator[tuple[Tensor | None, _Use]]:
    """How one call of a layer used its weight and bias. `gradient` is that of the layer's output."""
    match layer:
        case nn.Linear():
            gradient = gradient.flatten(1, -2) if gradient.ndim > 2 else gradient.unsqueeze(1)
            inputs = inputs.reshape(len(inputs), -1, inputs.shape[-1])
            yield layer.weight, _Outer(inputs.unsqueeze(1), gradient.unsqueeze(1))
            yield layer.bias, _Direct(gradient.sum(1))
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            batch, groups = len(inputs), layer.groups
            gradient = gradient.reshape(batch, groups, layer.out_channels // groups, -1)
            patches = _patches(layer, inputs).reshape(batch, groups, -1, gradient.shape[-1])
            yield layer.weight, _Outer(patches.mT, gradient.mT)
            yield layer.bias, _Direct(gradient.sum(-1).flatten(1))
        case nn.Embedding():
            gradient = gradient.reshape(len(inputs), -1, gradient.shape[-1])
            index = inputs.reshape(len(inputs), -1)
            if layer.padding_idx is not None:
                gradient = gradient * (index != layer.padding_idx).unsqueeze(-1)
            yield layer.weight, _Lookup(index, gradient)
        case nn.LayerNorm():
            scaled = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
            first = inputs.ndim - len(layer.normalized_shape)
            yield layer.weight, _Direct(_summed_up_to(first, gradient * scaled))
            yield layer.bias, _Direct(_summed_up_to(first, gradient))
        case nn.GroupNorm() | nn.modules.batchnorm._BatchNorm():
            if isinstance(layer, nn.GroupNorm):
                scaled = F.group_norm(inputs, layer.num_groups, eps=layer.eps)
            else:
                scaled = F.batch_norm(inputs, layer.running_mean, layer.running_var, eps=layer.eps)
            shape = (len(inputs), inputs.shape[1], -1)
            yield layer.weight, _Direct((gradient * scaled).reshape(shape).sum(-1))
            yield layer.bias, _Direct(gradient.reshape(shape).sum(-1))


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


def _sum_of_powers(uses: list[_Use], shape: torch.Size, power: Power) -> Tensor:
    """Σ_n |Σ_uses gradient_n|^power, in the weight's shape."""
    if all(isinstance(use, _Outer) for use in uses):
        outer = _joined(cast("list[_Outer]", uses))
        if outer.gradients.shape[1] == outer.gradients.shape[2] == 1:  # one use per example
            inputs, gradients = outer.inputs[:, 0, 0], outer.gradients[:, 0, 0]
            return (raised(gradients, power).T @ raised(inputs, power)).reshape(shape)
        uses = [outer]
    if all(isinstance(use, _Lookup) for use in uses):
        return _sum_of_powers_of_lookups(cast("list[_Lookup]", uses), shape, power)
    total = uses[0].gradients.new_zeros(shape)
    for chunk in chunks(len(uses[0].gradients), math.prod(shape)):
        gradient = cast("Tensor", sum(_example_gradient(use, chunk, shape) for use in uses))
        total += (gradient.square_() if power == 2 else gradient.abs_()).sum(0)
    return total


def _joined(uses: list[_Outer]) -> _Outer:
    """Several uses of one weight are more positions of one use."""
    if len(uses) == 1:
        return uses[0]
    return _Outer(torch.cat([use.inputs for use in uses], 2), torch.cat([use.gradients for use in uses], 2))


def _example_gradient(use: _Use, chunk: slice, shape: torch.Size) -> Tensor:
    match use:
        case _Outer(inputs, gradients):
            return (gradients[chunk].mT @ inputs[chunk]).reshape(-1, *shape)
        case _Lookup(index, gradients):
            index, gradients = index[chunk], gradients[chunk]
            dense = gradients.new_zeros(len(index), *shape)
            return dense.scatter_add_(1, index.unsqueeze(-1).expand_as(gradients), gradients)
        case _Direct(gradients):
            return gradients[chunk].reshape(-1, *shape).clone()


def _sum_of_powers_of_lookups(uses: list[_Lookup], shape: torch.Size, power: Power) -> Tensor:
    """Σ_n |Σ_{t: rows_t = row} g_nt|^power without a (B, rows, width) table: equal (example, row) pairs come first."""
    index = torch.cat([use.rows for use in uses], 1)
    gradients = torch.cat([use.gradients for use in uses], 1)
    example = torch.arange(len(index), device=index.device).unsqueeze(1)
    pairs, place = torch.unique(example * shape[0] + index, return_inverse=True)
    sums = gradients.new_zeros(len(pairs), shape[1]).index_add_(0, place.flatten(), gradients.flatten(0, 1))
    return gradients.new_zeros(shape).index_add_(0, pairs % shape[0], raised(sums, power))
