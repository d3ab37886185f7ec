"""The fast way: sums of powers of per-example gradients from the formulas of the layers that hold most weights.

All examples go through the model at once. From a layer's input and the gradient of its output follow the gradients of
the examples (`forgetless.importance.formulas`), and from these the sums (`forgetless.importance.uses`). A weight is
summed as soon as the backward pass has been at all of its uses, so that the gradients of one layer are held at a time.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from forgetless.importance.formulas import Formula, formula_of, may_have_formula
from forgetless.importance.request import Request, wide_type
from forgetless.importance.uses import Use, add_powers


class UnknownLayerError(Exception):
    """The model holds a wanted weight in something other than a known layer, or mixes its examples."""


class _Kept(torch.autograd.Function):
    """Keeps a tensor as autograd keeps what a backward pass needs: inside a checkpoint, by computing it again."""

    @staticmethod
    def forward(ctx: Any, kept: Tensor, anchor: Tensor) -> Tensor:
        """Keep a tensor; the anchor requires a gradient, without which nothing would be kept."""
        ctx.save_for_backward(kept)
        return anchor.detach()


class _Call:
    """One use of a layer. The output is held as an edge of the graph: what follows may change it in place."""

    def __init__(self, layer: nn.Module, formula: Formula, inputs: Tensor, output: Tensor) -> None:
        self.layer, self.formula, self._inputs = layer, formula, _kept(inputs)
        self.output: GradientEdge = get_gradient_edge(output)

    def uses(self, gradient: Tensor) -> Iterator[tuple[Tensor | None, Use]]:
        """How the layer's own weights were used, by the gradient of the output."""
        (inputs,) = self._inputs.saved_tensors
        gradient = gradient.to(wide_type(gradient.dtype))
        inputs = inputs.to(gradient.dtype) if inputs.is_floating_point() else inputs
        yield from self.formula(self.layer, inputs, gradient)


def _kept(inputs: Tensor) -> Any:
    anchor = torch.zeros((), device=inputs.device, requires_grad=True)
    return _Kept.apply(inputs.detach(), anchor).grad_fn  # type: ignore[no-untyped-call]


def by_layer(request: Request) -> dict[str, Tensor]:
    """Sums of powers of per-example gradients from the inputs and output gradients of each layer.

    Args:
        request: Of any kind but `batch`.

    Returns:
        Σ_n |∂ℓ_n/∂θ|^power by parameter name.

    Raises:
        UnknownLayerError: If there is no formula for the model, or it moves examples to other rows between its layers.
    """
    totals = request.sums()
    with _watched(request) as watch:  # until the end, because checkpoints go through the layers again
        outputs = request.forward(request.inputs)
        calls = watch.ended()
        if not calls:
            return totals
        first = _first_ones(calls)
        for targets, shares in request.labelled(outputs):
            losses = request.example_losses(outputs, targets)
            if not losses.requires_grad:  # it depends on weights that are not wanted, or on none
                continue
            if shares is not None:  # p (∂ℓ)² = (√p ∂ℓ)²
                losses = losses * shares.sqrt()
            if request.may_move_rows and not _stay_in_place(losses, calls):
                raise UnknownLayerError
            sums = _Sums(request, totals, calls)
            sums.add_all(losses.sum(), first, retain_graph=request.kind == "exact")
    return totals


class _Sums:
    """Sums of powers of the wanted weights, made as the backward pass goes from layer to layer.

    Args:
        request: Whose weights they are.
        totals: What is added to, by name.
        calls: In which the weights were used.
    """

    def __init__(self, request: Request, totals: Mapping[str, Tensor], calls: Sequence[_Call]) -> None:
        self._names = {id(weight): name for name, weight in request.named.items()}
        self._power, self._limit = request.power, request.chunk_numbers
        self._totals = totals
        self._calls = calls
        # A layer's own weights are used in each call of it, tied ones in those of several layers.
        self._num_left = Counter(name for call in calls for name in self._names_in(call.layer))
        self._uses: dict[str, list[Use]] = {}

    def _names_in(self, layer: nn.Module) -> set[str]:
        own = (self._names.get(id(weight)) for weight in layer.parameters(recurse=False))
        return {name for name in own if name is not None}

    def add_all(self, loss: Tensor, first: Sequence[_Call], retain_graph: bool) -> None:
        """Add what one backward pass shows.

        Args:
            loss: Σ_n ℓ_n.
            first: The calls that come after no other.
            retain_graph: Whether there is another backward pass to come.
        """
        edges = [call.output for call in first]
        handles = [
            call.output.node.register_prehook(partial(self._meet, call)) for call in self._calls if call not in first
        ]
        try:  # the gradients of the first ones are what the pass ends at, where no hook is called
            gradients = torch.autograd.grad(loss, edges, allow_unused=True, retain_graph=retain_graph)
        finally:
            for handle in handles:
                handle.remove()
        for call, gradient in zip(first, gradients, strict=True):
            self._add(call, gradient)
        for name in list(self._uses):  # of which some uses had no part in the loss
            self._sum(name)

    def _meet(self, call: _Call, gradients: Sequence[Tensor | None]) -> None:
        self._add(call, gradients[call.output.output_nr])

    @torch.no_grad()
    def _add(self, call: _Call, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        for weight, use in call.uses(gradient):
            if (name := self._names.get(id(weight))) is not None:
                self._uses.setdefault(name, []).append(use)
        for name in self._names_in(call.layer):
            self._num_left[name] -= 1
            if self._num_left[name] == 0:
                self._sum(name)

    def _sum(self, name: str) -> None:
        with torch.no_grad():
            add_powers(self._totals[name], self._uses.pop(name), self._power, self._limit)


def _first_ones(calls: Sequence[_Call]) -> list[_Call]:
    """The calls that come after no other: a backward pass to their outputs meets the outputs of all."""
    watched = {call.output.node for call in calls}
    reaches: dict[Node, bool] = {}
    for call in calls:
        stack = [(call.output.node, False)]
        while stack:
            node, is_done = stack.pop()
            before = [follower for follower, _ in node.next_functions if follower is not None]
            if is_done:
                reaches[node] = any(follower in watched or reaches[follower] for follower in before)
            elif node not in reaches:
                stack.append((node, True))
                stack += [(follower, False) for follower in before if follower not in reaches]
    return [call for call in calls if not reaches[call.output.node]]


# ---- the model, watched ----------------------------------------------------------------------------------------------


class _Watch:
    """Notes how a model calls the layers that hold the wanted weights.

    Args:
        request: Whose model it is.

    Raises:
        UnknownLayerError: If there cannot be a formula for a layer.
    """

    def __init__(self, request: Request) -> None:
        self._num_examples, self._shared = request.num_examples, request.shared
        self._calls: list[_Call] = []
        self._is_over = False
        self.shared: set[str] = set()
        wanted = {id(weight) for weight in request.named.values()}
        self.layers = {
            name: module
            for name, module in request.model.named_modules()
            if any(id(weight) in wanted for weight in module.parameters(recurse=False))
        }
        known = all(may_have_formula(layer) for layer in self.layers.values())
        if not known or any(weight.is_complex() for weight in request.named.values()):
            raise UnknownLayerError

    def ended(self) -> list[_Call]:
        """The calls of the forward pass. What is called later is a checkpoint's repetition."""
        self._is_over = True
        return self._calls

    def for_each_example(self, name: str, layer: nn.Module, inputs: Tensor) -> Tensor:
        """Inputs that are the same for all examples, such as positions, once for each of them."""
        num = self._num_examples
        if inputs.ndim > 1 and len(inputs) == 1:
            return inputs.expand(num, *inputs.shape[1:])
        if isinstance(layer, nn.Embedding) and inputs.ndim == 1:
            is_shared = len(inputs) != num if self._shared is None else name in self._shared
            if is_shared:
                self.shared.add(name)
                return inputs.expand(num, -1)
        return inputs

    def note(self, layer: nn.Module, inputs: Tensor, output: Any) -> None:
        """One call.

        Raises:
            UnknownLayerError: If there is no formula for it.
        """
        if self._is_over:
            _kept(inputs)  # as before
            return
        if not isinstance(output, Tensor) or inputs.shape[:1] != (self._num_examples,) or not output.requires_grad:
            raise UnknownLayerError
        formula = formula_of(layer, inputs, output)
        if formula is None:
            raise UnknownLayerError
        self._calls.append(_Call(layer, formula, inputs, output))


@contextlib.contextmanager
def _watched(request: Request) -> Iterator[_Watch]:
    """The model of a request, with its calls noted."""
    watch = _Watch(request)
    handles: list[Any] = []
    try:
        for name, layer in watch.layers.items():

            def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> Any:
                key, inputs = _only_tensor(args, kwargs)
                expanded = watch.for_each_example(name, layer, inputs)
                if expanded is inputs:
                    return None
                return ((expanded,), kwargs) if key is None else (args, {**kwargs, key: expanded})

            def after(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                watch.note(layer, _only_tensor(args, kwargs)[1], output)

            handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(layer.register_forward_hook(after, prepend=True, with_kwargs=True))
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def _only_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str | None, Tensor]:
    """The one argument of a layer, and its name if it was passed by name."""
    given = [*((None, value) for value in args), *kwargs.items()]
    if len(given) != 1 or not isinstance(given[0][1], Tensor):
        raise UnknownLayerError
    return given[0]


# ---- whether rows keep their places ----------------------------------------------------------------------------------


def rows_stay_in_place(request: Request) -> bool:
    """Whether row n of every layer's output acts on the loss of example n alone.

    With the losses weighted by w_n the gradient of row n is then w_n times what it was.

    Args:
        request: Of the true labels.

    Returns:
        True also where there is no formula for the model on these examples, so that its layers tell nothing.
    """
    try:
        with _watched(request) as watch:
            outputs = request.forward(request.inputs)
            losses = request.example_losses(outputs, request.targets)
            calls = watch.ended()
            return not calls or not losses.requires_grad or _stay_in_place(losses, calls)
    except UnknownLayerError:
        return True


def _stay_in_place(losses: Tensor, calls: Sequence[_Call]) -> bool:
    # Neighbours differ much, so that rows which change places with their neighbours show.
    order = torch.randperm(len(losses), generator=torch.Generator().manual_seed(0))
    weights = (1 + order / len(losses)).to(losses)
    edges = [call.output for call in calls]
    gradients = torch.autograd.grad(losses.sum(), edges, allow_unused=True, retain_graph=True)
    weighted = torch.autograd.grad((losses * weights).sum(), edges, allow_unused=True, retain_graph=True)
    return all(
        _is_scaled(found, gradient, weights)
        for gradient, found in zip(gradients, weighted, strict=True)
        if gradient is not None and found is not None
    )


def _is_scaled(found: Tensor, gradient: Tensor, weights: Tensor) -> bool:
    """Whether each row is its weight times what it was, up to rounding."""
    precise = not torch.is_autocast_enabled(found.device.type)
    tolerances = {torch.float64: (1e-4, 1e-7), torch.float32: (1e-3, 1e-5)} if precise else {}
    relative, noise = tolerances.get(found.dtype, (0.05, 0.01))
    expected = gradient.flatten(1) * weights.to(gradient.dtype).unsqueeze(1)
    difference = (found.flatten(1) - expected).abs().nan_to_num(0, 0, 0)
    size = expected.abs().nan_to_num(0, 0, 0)
    return bool((difference.amax(1) <= relative * size.amax(1) + noise * size.max()).all()) if size.numel() else True


class Handling(NamedTuple):
    """What the fast way has to know of a model.

    Attributes:
        may_move_rows: As in `Request`.
        shared: As in `Request`.
    """

    may_move_rows: bool = False
    shared: frozenset[str] = frozenset()


def handling(request: Request) -> Handling:
    """What one forward pass shows of how the model handles its examples.

    An operation before one of the layers that takes rows by their numbers, such as a sort, may move them: which ones
    can depend on the values of the examples.

    Args:
        request: Of some examples.
    """
    try:
        with _watched(request) as watch:
            _ = request.forward(request.inputs)
            calls, shared = watch.ended(), frozenset(watch.shared)
    except UnknownLayerError:
        return Handling()
    nodes = [call.output.node for call in calls]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if node.name().startswith(_MOVES):
            return Handling(True, shared)
        before = {follower for follower, _ in node.next_functions if follower is not None} - seen
        seen |= before
        nodes += before
    return Handling(False, shared)


_MOVES = ("Index", "Gather", "Scatter", "Take", "MaskedSelect", "MaskedScatter", "Sort", "Topk", "Stack")
