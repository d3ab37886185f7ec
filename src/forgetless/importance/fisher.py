"""How much a trained model needs each of its weights: the diagonal of the Fisher information.

For an example n with loss ℓ_n, the diagonal is the mean over examples of a squared per-example gradient,

    F_i = 1/N Σ_n (∂ℓ_n/∂θ_i)²,

and the kinds differ in the label that ℓ_n is taken at. The gradient of the batch mean, which an ordinary backward
pass leaves in `.grad`, is another quantity: squaring it gives about F/B for batches of B examples.

Layers that hold most weights have a fast path (`forgetless.importance.layers`), everything else goes through
`torch.func.vmap` (`forgetless.importance.vmap`). Either is compared with single-example gradients on three examples of
the first batch (`forgetless.importance.method`), so that a model which the fast path does not understand is computed
the general way instead of wrongly. The mean of absolute values in place of squares goes the same ways.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from forgetless.choices import FisherKind
from forgetless.errors import DivergedError, expect_one_of
from forgetless.importance.layers import UnknownLayerError
from forgetless.importance.method import CHECKED_EXAMPLES, choose_method
from forgetless.importance.request import Batch, LossFunction, Method, Power, Request, zeros


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
    | `batch` | the true one | the square of the *batch-mean* gradient, averaged over batches, as in the 2019 code |

    `batch` is not a Fisher: it shrinks like 1/B with the batch size B. It is for comparison only.

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
    totals = zeros(named)
    with _untouched(model, named.values(), generator) as labels_generator:
        requests = (
            Request(model, named, inputs, targets, loss_fn, kind, class_dim, labels_generator, power)
            for inputs, targets in map(_pair, batches)
        )
        num_examples = _add_up(requests, totals)
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


def _add_up(requests: Iterable[Request], totals: dict[str, Tensor]) -> int:
    """Add the powers of all requests to the totals, in place; returns the number of examples."""
    method: Method | None = None
    num_checked = num_examples = 0
    for request in requests:
        targets = request.targets
        _check_lengths(request.inputs, targets)
        if len(targets) == 0:
            continue
        if method is None or num_checked < min(CHECKED_EXAMPLES, len(targets)):
            method = choose_method(request)
            num_checked = len(targets)
        try:
            found = method(request)
        except UnknownLayerError:  # this batch takes another way through the model than those before
            method = choose_method(request)
            found = method(request)
        for name, powers in found.items():
            totals[name] += powers
        num_examples += len(targets)
    return num_examples


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


# ---- wrapped models and several processes ------------------------------------------------------------------------


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel and torch.compile wrappers, whose parameter names carry no prefix.

    Args:
        model: Wrapped or not.
    """
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
