"""How much a trained model needs each of its weights: the diagonal of the Fisher information.

For an example n with loss ℓ_n, the diagonal is the mean over examples of a squared per-example gradient,

    F_i = 1/N Σ_n (∂ℓ_n/∂θ_i)²,

and the kinds differ in the label that ℓ_n is taken at. The gradient of the batch mean, which an ordinary backward
pass leaves in `.grad`, is another quantity: squaring it gives about F/B for batches of B examples.

The layers that hold most weights (linear, convolution, embedding, normalisation) have a fast path: from a layer's
input a_n and the gradient g_n of its output, the per-example gradient is g_n a_nᵀ, and where the layer is used once
per example the sum of squares needs no per-example gradient at all, Σ_n (g_n a_nᵀ)² = (g²)ᵀ(a²). A weight that is
used several times per example (a recurrent net, a convolution's positions, tied weights) needs the sum over its uses
*before* squaring. Everything else goes through `torch.func.vmap`. The fast path is compared with single-example
gradients on three examples of the first batch, so that a model it does not understand is computed the general way
instead of wrongly. The mean of absolute values in place of squares goes the same ways, |g_n a_nᵀ| = |g_n| |a_n|ᵀ.
"""

import contextlib
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves, tree_map

from forgetless.errors import DivergedError, expect_one_of

FisherKind = Literal["empirical", "monte_carlo", "exact", "batch"]
Batch = tuple[Any, Tensor]
LossFunction = Callable[[Any, Tensor], Tensor]
Power = Literal[1, 2]

# Per-example gradients are formed for at most this many numbers at a time (64 MiB in float32).
_CHUNK_NUMBERS = 2**24
_CHECKED_EXAMPLES = 3


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[Batch],
    loss_fn: LossFunction,
    kind: FisherKind = "empirical",
    *,
    parameters: Iterable[Tensor] | None = None,
    class_dim: int = -1,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Diagonal Fisher information of a model's weights, F_i = mean over examples of (∂ℓ_n/∂θ_i)².

    | kind | label of ℓ_n | what it is |
    |---|---|---|
    | `empirical` | the true one | the empirical Fisher; vanishes where the model fits the examples perfectly |
    | `monte_carlo` | one drawn from the model's own prediction | an unbiased estimate of the Fisher |
    | `exact` | Σ_c p_c (∂ℓ_n(c)/∂θ)² over all classes c | the Fisher itself; one backward pass per class |
    | `batch` | the true one | the square of the *batch-mean* gradient, averaged over batches. Not a Fisher: it |
    |         |              | shrinks like 1/B with the batch size B. For comparison with the 2019 code only. |

    The model is evaluated in eval mode (no dropout, running BatchNorm statistics) and left as it was found: modes,
    `.grad`, buffers and random state. Under DistributedDataParallel each process passes its own examples and all get
    the mean over all of them.

    Source: Benyahia et al. 2019 (arXiv:1902.08232), eq. 7–8, whose code used `batch`. Kunstner et al. 2019
    (arXiv:1905.12558) compare `empirical` with the true Fisher.

    Args:
        model: Any module. Its output is a tensor, or a tuple, list or dict of tensors, with examples along dim 0.
        batches: Pairs (inputs, targets), examples along dim 0 of each. Inputs are a tensor, a tuple (positional
            arguments) or a dict (keyword arguments). What is one example is decided here: for a language model, one
            sequence chunk.
        loss_fn: Maps (outputs, targets) of a batch to a scalar. It is called on batches of one example, so that mean
            and sum reductions give the same result where an example has one target. Where it has T targets (a
            sequence chunk), a mean over them gives 1/T² of what their sum gives.
        kind: See the table.
        parameters: Only these weights, by identity (the shared ones, say); by default all that require a gradient.
        class_dim: Where the logits' classes lie in the output, for `monte_carlo` and `exact`. A negative target, such
            as the -100 that cross entropy ignores, is no class and stays what it is.
        generator: Draws the labels of `monte_carlo`. By default a copy of the global generator, whose own state is
            not advanced; pass one to get independent draws in successive calls.

    Returns:
        Parameter name (as in `model.named_parameters()`) → F, in the weight's shape and device, at least float32. The
        unit is loss² per weight². A weight that the output does not depend on has F = 0.

    Raises:
        ValueError: If there are no batches, inputs and targets of a batch differ in length, the model holds none of
            the wanted weights, a kind does not fit the targets, or a gradient is not finite (the error names the
            parameter).

    >>> linear = nn.Linear(1, 1, bias=False)
    >>> x = torch.tensor([[1.0], [2.0]])
    >>> squared_error = lambda output, target: (output - target).square().sum() / 2
    >>> with torch.no_grad():
    ...     _ = linear.weight.fill_(1.0)
    >>> diagonal_fisher(linear, [(x, torch.zeros(2, 1))], squared_error)["weight"]  # (1² + 4²) / 2
    tensor([[8.5000]])
    """
    expect_one_of("kind of Fisher", kind, get_args(FisherKind))
    return _mean_over_examples(model, batches, loss_fn, kind, 2, parameters, class_dim, generator)


def mean_absolute_gradient(
    model: nn.Module, batches: Iterable[Batch], function: LossFunction, *, parameters: Iterable[Tensor] | None = None
) -> dict[str, Tensor]:
    """Mean over examples of the absolute per-example gradient, 1/N Σ_n |∂s_n/∂θ_i|, of any scalar s of an example.

    Eval mode, model left as it was found, and several processes are as in `diagonal_fisher`, and so is the way it is
    computed.

    Args:
        model: Any module, as in `diagonal_fisher`.
        batches: Pairs (inputs, targets), as in `diagonal_fisher`.
        function: Maps (outputs, targets) of a batch of one example to its s, a scalar.
        parameters: Only these weights, by identity; by default all that require a gradient.

    Returns:
        Parameter name → mean, in the weight's shape and device, at least float32. The unit is that of s per weight.

    Raises:
        ValueError: As in `diagonal_fisher`.

    >>> linear = nn.Linear(1, 1, bias=False)
    >>> x = torch.tensor([[1.0], [-2.0]])
    >>> mean_absolute_gradient(linear, [(x, torch.zeros(2))], lambda output, target: output.sum())["weight"]
    tensor([[1.5000]])
    """
    return _mean_over_examples(model, batches, function, "empirical", 1, parameters, -1, None)


def _mean_over_examples(
    model: nn.Module,
    batches: Iterable[Batch],
    loss_fn: LossFunction,
    kind: FisherKind,
    power: Power,
    parameters: Iterable[Tensor] | None,
    class_dim: int,
    generator: torch.Generator | None,
) -> dict[str, Tensor]:
    """Mean over examples of |∂ℓ_n/∂θ|^power, by parameter name."""
    process_group = _process_group(model)
    model = unwrapped(model)
    named = _selected(model, parameters)
    totals = _zeros(named)
    method: _Method | None = None
    num_checked = num_examples = 0
    with _untouched(model, named.values(), generator) as labels_generator:
        for inputs, targets in map(_pair, batches):
            _check_lengths(inputs, targets)
            if len(targets) == 0:
                continue
            batch = _Request(model, named, inputs, targets, loss_fn, kind, class_dim, labels_generator, power)
            if method is None or num_checked < min(_CHECKED_EXAMPLES, len(targets)):
                method = _choose_method(batch)
                num_checked = len(targets)
            try:
                found = method(batch)
            except _UnknownLayerError:  # this batch takes another way through the model than those before
                method = _choose_method(batch)
                found = method(batch)
            for name, powers in found.items():
                totals[name] += powers
            num_examples += len(targets)
    if process_group is not None:
        num_examples = _summed_over_processes(totals, num_examples, process_group)
    if num_examples == 0:
        raise ValueError(
            "Expected at least one example to compute the Fisher from, but got none. Pass a fresh iterator."
        )
    for name, total in totals.items():
        total /= num_examples
        if not bool(torch.isfinite(total).all()):
            raise DivergedError(
                f"Expected finite gradients for the Fisher, but got inf or nan in parameter {name!r}. "
                "Check that the model has not diverged and that its inputs are finite."
            )
    return totals


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel and torch.compile wrappers, whose parameter names carry no prefix."""
    return list(_layers_of_wrapping(model))[-1]


def _layers_of_wrapping(model: nn.Module) -> Iterator[nn.Module]:
    yield model
    inner = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
    if isinstance(inner, nn.Module):
        yield from _layers_of_wrapping(inner)


def _process_group(model: nn.Module) -> dist.ProcessGroup | None:
    """The processes that train the model together, if it is wrapped in DistributedDataParallel."""
    groups = (m.process_group for m in _layers_of_wrapping(model) if isinstance(m, DistributedDataParallel))
    return next(groups, None)


def _summed_over_processes(totals: dict[str, Tensor], num_examples: int, group: dist.ProcessGroup) -> int:
    """Add up the powers of all processes, in place, and their numbers of examples."""
    count = torch.tensor(num_examples, device=next(iter(totals.values())).device)
    for tensor in (*totals.values(), count):
        dist.all_reduce(tensor, group=group)
    return int(count)


class _Request(NamedTuple):
    """One batch and what is asked of it."""

    model: nn.Module
    named: dict[str, nn.Parameter]
    inputs: Any
    targets: Tensor
    loss_fn: LossFunction
    kind: FisherKind
    class_dim: int
    generator: torch.Generator
    power: Power = 2

    def head(self, num_examples: int) -> "_Request":
        """The same request for the first examples only."""
        return self._replace(inputs=_take(self.inputs, slice(num_examples)), targets=self.targets[:num_examples])

    def forward(self, inputs: Any) -> Any:
        return _call(self.model, inputs)


# Maps a request to Σ_n |∂ℓ_n/∂θ|^power (for `batch`: B times the squared mean), by parameter name.
_Method = Callable[[_Request], dict[str, Tensor]]


def _raised(gradients: Tensor, power: Power) -> Tensor:
    return gradients.square() if power == 2 else gradients.abs()


def _zeros(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Where powers are summed: at least float32, whose range the square of a half-precision gradient needs."""
    return {name: torch.zeros_like(weight, dtype=_wide(weight.dtype)) for name, weight in named.items()}


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _call(function: Callable[..., Any], inputs: Any) -> Any:
    if isinstance(inputs, tuple):
        return function(*inputs)
    if isinstance(inputs, Mapping):
        return function(**inputs)
    return function(inputs)


def _take(tree: Any, index: slice) -> Any:
    return tree_map(lambda leaf: leaf[index] if isinstance(leaf, Tensor) else leaf, tree)


def _pair(batch: Any) -> tuple[Any, Tensor]:
    if isinstance(batch, Sequence) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return batch[0], batch[1]
    kind = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, (Sequence, Mapping)) else type(batch).__name__
    raise ValueError(
        f"Expected batches to be an iterable of pairs (inputs, targets) with targets a tensor, but got a {kind} in it. "
        "Pass [(inputs, targets)] for a single batch; inputs may be a tuple or a dict of several."
    )


def _check_lengths(inputs: Any, targets: Tensor) -> None:
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.shape[:1] != targets.shape[:1]:
            raise ValueError(
                f"Expected inputs and targets with examples along dim 0, but got inputs of shape {tuple(leaf.shape)} "
                f"and targets of shape {tuple(targets.shape)}. Put the examples first in each."
            )


def _selected(model: nn.Module, parameters: Iterable[Tensor] | None) -> dict[str, nn.Parameter]:
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if parameters is not None:
        wanted = {id(weight) for weight in parameters}
        named = {name: weight for name, weight in named.items() if id(weight) in wanted}
    if not named:
        raise ValueError(
            "Expected a model that holds weights to compute the Fisher of, but got one that holds none that require "
            "a gradient and are among `parameters`. Weights are matched by identity: pass the model itself, not a copy."
        )
    return named


@contextlib.contextmanager
def _untouched(
    model: nn.Module, weights: Iterable[Tensor], generator: torch.Generator | None
) -> Iterator[torch.Generator]:
    """Evaluation mode and a private random state for the time of the computation."""
    training = {module: module.training for module in model.modules()}
    device = next(iter(weights)).device
    if generator is None:
        generator = torch.Generator(device)
        if device.type in {"cpu", "cuda"}:
            generator.set_state(torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device))
        else:  # a state of another kind of device has another form
            generator.manual_seed(torch.initial_seed())
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        model.eval()
        try:
            yield generator
        finally:
            for module, was_training in training.items():
                module.training = was_training


# ---- labels and losses -------------------------------------------------------------------------------------------


def _example_losses(loss_fn: LossFunction, outputs: Any, targets: Tensor) -> Tensor:
    """ℓ_n for each example (B,), whatever the reduction of loss_fn."""

    def one(output: Any, target: Tensor) -> Tensor:
        return loss_fn(tree_map(lambda leaf: leaf.unsqueeze(0), output), target.unsqueeze(0)).sum()

    try:
        return torch.func.vmap(one)(outputs, targets)
    except (RuntimeError, ValueError):  # e.g. a loss that calls .item(), or a state among the outputs
        examples = (slice(n, n + 1) for n in range(len(targets)))
        return torch.stack([loss_fn(_take(outputs, n), targets[n]).sum() for n in examples])


def _logits(outputs: Any, targets: Tensor, kind: str) -> Tensor:
    if not isinstance(outputs, Tensor):
        outputs = getattr(outputs, "logits", None)
    if not isinstance(outputs, Tensor) or targets.is_floating_point():
        raise ValueError(
            f"Expected class logits and integer targets for kind={kind!r}, but got another model output or "
            f"{targets.dtype} targets. Use kind='empirical'."
        )
    return outputs.detach()


def _labels(batch: _Request, outputs: Any) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The labels to take gradients at, and the weight (B,) of each example's squared gradient (None: 1)."""
    if batch.kind in {"empirical", "batch"}:
        yield batch.targets, None
        return
    logits = _logits(outputs, batch.targets, batch.kind).movedim(batch.class_dim, -1)
    if logits.shape[:-1] != batch.targets.shape:
        raise ValueError(
            f"Expected logits with one row of classes per target of shape {tuple(batch.targets.shape)}, but got "
            f"{tuple(logits.shape)}. Set class_dim to the dimension of the classes."
        )
    probabilities = logits.softmax(-1)
    if batch.kind == "monte_carlo":
        flat = probabilities.flatten(0, -2)
        draws = torch.multinomial(flat, 1, generator=batch.generator).view(batch.targets.shape)
        yield batch.targets.where(batch.targets < 0, draws.to(batch.targets.dtype)), None
        return
    if batch.targets.ndim != 1:
        raise ValueError(
            f"Expected one label per example for kind='exact', but got targets of shape "
            f"{tuple(batch.targets.shape)}. Use kind='monte_carlo'."
        )
    for label in range(probabilities.shape[-1]):
        yield batch.targets.where(batch.targets < 0, label), probabilities[:, label]


# ---- which method ------------------------------------------------------------------------------------------------


def _choose_method(batch: _Request) -> _Method:
    """The fastest method that reproduces single-example gradients on the first examples of the batch."""
    if batch.kind == "batch":
        return _squared_batch_mean
    # Whether a method understands the model does not depend on the labels, and drawn ones would differ.
    sample = batch.head(_CHECKED_EXAMPLES)._replace(kind="empirical")
    # An example that the model fits perfectly has no gradient, and any method would seem right on it.
    samples = (sample, sample._replace(loss_fn=_with_projection(batch.loss_fn)))
    expected = [_by_loop(sample) for sample in samples]
    for method in (_by_layer, _by_vmap):
        if all(_agrees(method, *check) for check in zip(samples, expected, strict=True)):
            return method
    warnings.warn(
        "diagonal_fisher goes through the examples one by one: the model is not made of known layers only and "
        "torch.func.vmap cannot follow it. This is slow.",
        stacklevel=4,
    )
    return _by_loop


def _with_projection(loss_fn: LossFunction) -> LossFunction:
    """The loss plus a fixed linear function of the outputs, whose gradient does not vanish with the loss."""

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        total = loss_fn(outputs, targets).sum()
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                # Unequal coefficients, because the sum of normalised outputs is constant.
                ramp = torch.linspace(0.5, 1.5, leaf.numel(), dtype=leaf.dtype, device=leaf.device)
                total = total + (leaf.flatten() * ramp).sum()
        return total

    return loss


def _agrees(method: _Method, sample: _Request, expected: dict[str, Tensor]) -> bool:
    try:
        found = method(sample)
    except Exception:  # whatever it is, `_by_loop` has just done without
        return False
    largest = max(value.nan_to_num(0, 0, 0).max().item() for value in expected.values() if value.numel())
    return all(
        _close(found[name], value, sample.named[name].dtype, largest, sample.power) for name, value in expected.items()
    )


def _close(found: Tensor, expected: Tensor, dtype: torch.dtype, largest: float, power: Power) -> bool:
    """Up to rounding, including that of gradients which are 0 but for rounding (a bias before a normalisation)."""
    if not expected.numel():
        return True
    if not bool(torch.isfinite(expected).all()):
        return not bool(torch.isfinite(found).all())  # refused by name at the end
    relative = {torch.float64: 1e-9, torch.float32: 1e-2}.get(dtype, 0.2)
    noise = (100 * torch.finfo(dtype).eps) ** power * largest
    return bool((found - expected).abs().max() <= relative * expected.max() + noise)


def _by_loop(batch: _Request) -> dict[str, Tensor]:
    """One forward and backward pass per example."""
    totals = _zeros(batch.named)
    weights = list(batch.named.values())
    for n in range(len(batch.targets)):
        example = batch._replace(inputs=_take(batch.inputs, slice(n, n + 1)), targets=batch.targets[n : n + 1])
        outputs = example.forward(example.inputs)
        for targets, weight in _labels(example, outputs):
            loss = batch.loss_fn(outputs, targets).sum()
            scale = 1.0 if weight is None else weight[0]
            gradients = torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=batch.kind == "exact")
            for name, gradient in zip(batch.named, gradients, strict=True):
                if gradient is not None:
                    totals[name] += _raised(gradient.to(totals[name].dtype), batch.power) * scale
    return totals


def _squared_batch_mean(batch: _Request) -> dict[str, Tensor]:
    losses = _example_losses(batch.loss_fn, batch.forward(batch.inputs), batch.targets)
    gradients = torch.autograd.grad(losses.mean(), list(batch.named.values()), allow_unused=True)
    totals = _zeros(batch.named)
    for total, gradient in zip(totals.values(), gradients, strict=True):
        if gradient is not None:
            total += gradient.to(total.dtype).square() * len(batch.targets)
    return totals


def _by_vmap(batch: _Request) -> dict[str, Tensor]:
    """Per-example gradients by `torch.func`, a few examples at a time."""
    weights: dict[str, Tensor] = {**batch.named}
    others: dict[str, Tensor] = {k: v for k, v in batch.model.named_parameters() if k not in weights}
    others |= dict(batch.model.named_buffers())

    def example_outputs(weights: dict[str, Tensor], inputs: Any) -> Any:
        return _call(
            lambda *args, **kwargs: torch.func.functional_call(batch.model, (weights, others), args, kwargs),
            tree_map(lambda leaf: leaf.unsqueeze(0) if isinstance(leaf, Tensor) else leaf, inputs),
        )

    def example_loss(weights: dict[str, Tensor], inputs: Any, target: Tensor) -> Tensor:
        return batch.loss_fn(example_outputs(weights, inputs), target.unsqueeze(0)).sum()

    def example_logits(inputs: Any) -> Tensor:
        def logits(weights: dict[str, Tensor]) -> Tensor:
            return _logits(example_outputs(weights, inputs), batch.targets, batch.kind).squeeze(0)

        # Recurrent layers have a batching rule only where they are differentiated.
        return cast("Tensor", torch.func.vjp(logits, weights)[0])

    input_dims = tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, batch.inputs)
    example_gradients = torch.func.vmap(torch.func.grad(example_loss), (None, input_dims, 0))
    totals = _zeros(batch.named)
    size = max(1, _CHUNK_NUMBERS // max(1, sum(weight.numel() for weight in weights.values())))
    outputs = None
    if batch.kind in {"monte_carlo", "exact"}:
        with _explicit_states(batch.model):
            outputs = torch.func.vmap(example_logits, (input_dims,))(batch.inputs)
    for targets, example_weights in _labels(batch, outputs):
        for start in range(0, len(targets), size):
            chunk = slice(start, start + size)
            with _explicit_states(batch.model):
                gradients = example_gradients(weights, _take(batch.inputs, chunk), targets[chunk])
            for name, gradient in gradients.items():
                powers = _raised(gradient.detach().to(totals[name].dtype), batch.power)
                if example_weights is not None:
                    powers = torch.tensordot(example_weights[chunk], powers, 1)
                    totals[name] += powers
                else:
                    totals[name] += powers.sum(0)
    return totals


@contextlib.contextmanager
def _explicit_states(model: nn.Module) -> Iterator[None]:
    """Pass nn.RNN, nn.GRU and nn.LSTM their zero states.

    Those they make themselves are not known to vmap, which then refuses the in-place additions of the cell.
    """

    def add_state(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            return None
        batch_dims = () if args[0].ndim == 2 else (args[0].shape[0 if layer.batch_first else 1],)
        num_states = layer.num_layers * (2 if layer.bidirectional else 1)
        hidden = args[0].new_zeros(num_states, *batch_dims, layer.proj_size or layer.hidden_size)
        cell = args[0].new_zeros(num_states, *batch_dims, layer.hidden_size)
        return (args[0], (hidden, cell) if isinstance(layer, nn.LSTM) else hidden), kwargs

    handles = [
        layer.register_forward_pre_hook(add_state, with_kwargs=True)
        for layer in model.modules()
        if isinstance(layer, nn.RNNBase)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ---- the fast path: layers ---------------------------------------------------------------------------------------


class _UnknownLayerError(Exception):
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


def _by_layer(batch: _Request) -> dict[str, Tensor]:
    """Sums of powers of per-example gradients from the inputs and output gradients of each layer."""
    calls: list[_Call] = []
    num_examples = len(batch.targets)

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        inputs: Tensor = args[0] if args else kwargs["input"]
        if inputs.shape[:1] != (num_examples,) or not output.requires_grad:
            raise _UnknownLayerError
        calls.append(_Call(layer, inputs.detach(), get_gradient_edge(output)))

    handles = [layer.register_forward_hook(note, prepend=True, with_kwargs=True) for layer in _layers_holding(batch)]
    try:
        outputs = batch.forward(batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    totals = _zeros(batch.named)
    if not calls:
        return totals
    names = {id(weight): name for name, weight in batch.named.items()}
    for targets, example_weights in _labels(batch, outputs):
        losses = _example_losses(batch.loss_fn, outputs, targets)
        if example_weights is not None:  # p (∂ℓ)² = (√p ∂ℓ)²
            losses = losses * example_weights.sqrt()
        gradients = torch.autograd.grad(
            losses.sum(),
            [call.output for call in calls],
            allow_unused=True,
            retain_graph=batch.kind == "exact",
        )
        uses: defaultdict[str, list[_Use]] = defaultdict(list)
        with torch.no_grad():
            for call, gradient in zip(calls, gradients, strict=True):
                if gradient is not None:
                    gradient = gradient.to(_wide(gradient.dtype))
                    inputs = call.inputs.to(gradient.dtype) if call.inputs.is_floating_point() else call.inputs
                    for weight, use in _uses(call.layer, inputs, gradient):
                        if id(weight) in names:
                            uses[names[id(weight)]].append(use)
            for name in list(uses):
                totals[name] += _sum_of_powers(uses.pop(name), batch.named[name].shape, batch.power)
    return totals


def _layers_holding(batch: _Request) -> list[nn.Module]:
    """The known layers that own the wanted weights; every weight must have one."""
    wanted = {id(weight) for weight in batch.named.values()}
    layers = [
        module
        for module in batch.model.modules()
        if any(id(weight) in wanted for weight in module.parameters(recurse=False))
    ]
    if not all(_is_known(layer) for layer in layers):
        raise _UnknownLayerError
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
            yield (
                layer.weight,
                _Direct((gradient * scaled).flatten(1, first - 1).sum(1) if first > 1 else gradient * scaled),
            )
            yield layer.bias, _Direct(gradient.flatten(1, first - 1).sum(1) if first > 1 else gradient)
        case nn.GroupNorm() | nn.modules.batchnorm._BatchNorm():
            if isinstance(layer, nn.GroupNorm):
                scaled = F.group_norm(inputs, layer.num_groups, eps=layer.eps)
            else:
                scaled = F.batch_norm(inputs, layer.running_mean, layer.running_var, eps=layer.eps)
            shape = (len(inputs), inputs.shape[1], -1)
            yield layer.weight, _Direct((gradient * scaled).reshape(shape).sum(-1))
            yield layer.bias, _Direct(gradient.reshape(shape).sum(-1))


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
            return (_raised(gradients, power).T @ _raised(inputs, power)).reshape(shape)
        uses = [outer]
    if all(isinstance(use, _Lookup) for use in uses):
        return _sum_of_powers_of_lookups(cast("list[_Lookup]", uses), shape, power)
    num_examples = len(uses[0].gradients)
    size = max(1, _CHUNK_NUMBERS // math.prod(shape))
    total = uses[0].gradients.new_zeros(shape)
    for start in range(0, num_examples, size):
        chunk = slice(start, start + size)
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
    return gradients.new_zeros(shape).index_add_(0, pairs % shape[0], _raised(sums, power))
