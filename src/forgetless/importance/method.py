"""The choice of the fastest way to a model's per-example gradients that is right for it."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from forgetless.errors import InputError
from forgetless.importance.layers import by_layer, handling, rows_stay_in_place
from forgetless.importance.request import LossFunction, Method, Power, Request, call, raised, take, twice, zeros
from forgetless.importance.vmap import by_vmap
from forgetless.importance.words import warn

CHECKED_EXAMPLES = 3
"""So many examples of a batch are computed one by one as well, to check a method."""

_CHECKED_ROWS, _CHECKED_ROWS_LATER = 32, 16
"""So many examples of a batch are checked to keep their places in the model; of a later batch a quarter at most."""


class Chosen(NamedTuple):
    """A method, and what it has to know of the model.

    Attributes:
        method: Which.
        in_pairs: As in `Request`.
        may_move_rows: As in `Request`.
        shared: As in `Request`.
    """

    method: Method
    in_pairs: bool = False
    may_move_rows: bool = False
    shared: frozenset[str] | None = None

    def __call__(self, request: Request) -> dict[str, Tensor]:
        """The method's answer."""
        return self.method(self.asked(request))

    def asked(self, request: Request) -> Request:
        """The request, with what is known of the model."""
        return request._replace(in_pairs=self.in_pairs, may_move_rows=self.may_move_rows, shared=self.shared)

    @property
    def is_fast(self) -> bool:
        """Whether it takes all examples through the model at once, so that it matters if they stay in their places."""
        return self.method is by_layer


def choose_method(request: Request, fast: bool = True) -> Chosen:
    """The fastest method that reproduces single-example gradients on some examples of the request.

    Args:
        request: Of any kind.
        fast: Whether the fast way may be taken.

    Raises:
        InputError: If the model cannot be evaluated on one example.
    """
    if request.kind == "batch":
        return Chosen(_squared_batch_mean)
    # Whether a method understands the model does not depend on the labels, and drawn ones would differ.
    request = request._replace(labels=request.labels.true())
    sample, loop, expected = _one_by_one(request)
    chosen: Chosen | None = None
    if fast and _agrees(by_layer, sample, expected):
        chosen = Chosen(by_layer, sample.in_pairs, *handling(sample))
        chosen = chosen if _keeps_places(chosen.asked(request)) else None
    if chosen is None and _agrees(by_vmap, sample, expected):
        chosen = Chosen(by_vmap, sample.in_pairs)
    if chosen is None:
        chosen = Chosen(loop, sample.in_pairs)
        warn(
            "diagonal_fisher goes through the examples one by one: the model is not made of known layers only and "
            "torch.func.vmap cannot follow it. This is slow."
        )
    tell_what_single_examples_miss(request._replace(in_pairs=sample.in_pairs), chosen.is_fast)
    return chosen


def still_right(request: Request) -> bool:
    """Whether a later batch keeps its order in the fast way as well, which the values of its examples may decide.

    Args:
        request: Of any kind but `batch`.
    """
    num_rows = min(_CHECKED_ROWS_LATER, max(4, request.num_examples // 4))
    return request.num_examples < 2 or _keeps_places(request._replace(labels=request.labels.true()), num_rows)


def _some(request: Request, num: int) -> Tensor:
    """So many of the examples, in random order, but always the same."""
    order = torch.randperm(request.num_examples, generator=torch.Generator().manual_seed(0))
    return order[:num]


def _checks(sample: Request) -> tuple[Request, Request]:
    # An example that the model fits perfectly has no gradient, and any method would seem right on it.
    return sample, sample._replace(loss_fn=with_projection(sample.loss_fn))


def _one_by_one(request: Request) -> tuple[Request, Method, list[dict[str, Tensor]]]:
    """A sample of the examples, the way in which it can be computed one by one, and what that finds."""
    sample = request.part(_some(request, CHECKED_EXAMPLES))
    if _loses_batch_of_one(request):
        sample = sample._replace(in_pairs=True)
    loop: Method = by_loop
    try:
        expected = [by_loop(check) for check in _checks(sample)]
    except Exception as error:
        if "use_reentrant" not in str(error) and "Checkpointing is not compatible" not in str(error):
            for n in range(sample.num_examples):
                try:
                    sample.forward(take(sample.inputs, slice(n, n + 1)))
                except Exception:
                    _refuse_single_examples(request, error)
            raise
        loop = by_backward
        expected = [by_backward(check) for check in _checks(sample)]
    return sample, loop, expected


def _keeps_places(request: Request, num_rows: int = _CHECKED_ROWS) -> bool:
    """Whether each example keeps its row in every layer, in some order of the examples and its reverse."""
    some = _some(request, num_rows)
    orders = (some, some.flip(0)) if len(some) <= 8 else (some,)
    projected = request._replace(loss_fn=with_projection(request.loss_fn))
    return all(rows_stay_in_place(projected.part(order)) for order in orders)


# ---- models that differ between one example and several ----------------------------------------------------------


def _loses_batch_of_one(request: Request) -> bool:
    """Whether a batch of one loses its dimension in the model, as in `squeeze()`.

    Raises:
        InputError: If the model needs the other examples.
    """
    first = take(request.inputs, slice(0, 1))
    alone = pair = error = None
    try:
        alone = call(request.model, first)
        if any(leaf.shape[:1] == (1,) for leaf in _tensors(alone)):
            return False
    except Exception as caught:  # whatever it is, it is told below
        error = caught
    with contextlib.suppress(Exception):
        pair = call(request.model, twice(first))
    if pair is not None and (error is not None or _num_dims(alone) < _num_dims(pair)):
        others = take(request.inputs, slice(0, 2))
        if same_outputs(take(pair, slice(0, 1)), take(call(request.model, others), slice(0, 1))):
            return True
    if error is None:
        return False
    _refuse_single_examples(request, error)
    raise error


def _refuse_single_examples(request: Request, error: Exception) -> None:
    """Tell a model that needs the whole batch from one that fails anyway.

    Raises:
        InputError: If the model does with the whole batch what it does not with one example.
    """
    try:
        call(request.model, request.inputs)
    except Exception:
        return
    if request.num_examples > 1:
        raise InputError(
            f"Expected a model that can be evaluated on one example, but got {type(error).__name__} "
            f"({' '.join(str(error).split()).rstrip('.')}). A layer that needs the other examples of its batch "
            "(BatchNorm without running statistics) or an input that is of the whole batch (offsets, a state) has no "
            "gradient of one example."
        ) from error


def _num_dims(outputs: Any) -> int:
    return sum(leaf.ndim for leaf in _tensors(outputs))


def same_outputs(left: Any, right: Any) -> bool:
    """Whether two outputs of a model are the same up to rounding.

    Args:
        left: A tree of tensors and other things.
        right: Of the same structure.
    """
    pairs = zip(tree_leaves(left), tree_leaves(right), strict=True)
    return all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-3 * b.detach().abs().max().item(), equal_nan=True)
        for a, b in pairs
        if isinstance(a, Tensor)
        and isinstance(b, Tensor)
        and a.is_floating_point()
        and a.numel()
        and a.shape == b.shape
    )


def tell_what_single_examples_miss(request: Request, is_fast: bool) -> None:
    """Warn if the loss of a batch is something else than that of its examples.

    Args:
        request: Of the true labels.
        is_fast: Whether its examples are known to be independent in the model.
    """
    if not _loss_is_that_of_the_example_alone(request, is_fast):
        warn(
            "forgetless: the loss of an example in its batch is not the loss of the example alone. The model mixes the "
            "examples of a batch (BatchNorm without running statistics, say), or an input is of the whole batch (a "
            "mask, positions): pass that for every example. The importance is that of the model on one example at a "
            "time."
        )
    elif not _loss_is_a_mean_or_sum(request):
        warn(
            "forgetless: the loss of a batch is neither the mean nor the sum of the losses of its examples, and the "
            "importance is that of the loss on one example at a time. Class weights under reduction='mean' cancel "
            "there (use reduction='sum'), and a loss over the pairs of a batch, such as a contrastive one, is not "
            "supported."
        )


def _loss_is_that_of_the_example_alone(request: Request, is_fast: bool) -> bool:
    """Whether the model gives an example the same outputs in its batch and alone, as far as that can be told."""
    whole = len(_tensors(request.inputs)) > 1  # one of several inputs may be of the whole batch
    if is_fast and not whole:
        return True
    rows = _some(request, CHECKED_EXAMPLES)
    batch = request if whole else request.part(rows)
    rows = rows if whole else torch.arange(len(rows))
    with contextlib.suppress(Exception):  # a loss or a model for single examples only
        outputs = batch.forward(batch.inputs)
        if any(not leaf.ndim for leaf in _tensors(outputs)):  # a loss that the model computes of the whole batch
            return True
        together = batch.example_losses(outputs, batch.targets)[rows]
        examples = [batch.part(slice(n, n + 1)) for n in rows.tolist()]
        alone = [one.loss_fn(one.forward(one.inputs), one.targets).sum() for one in examples]
        return _near(together, torch.stack(alone), request)
    return True


def _loss_is_a_mean_or_sum(request: Request) -> bool:
    """Whether the loss of a batch is the mean or the sum of its examples' losses, as far as that can be told."""
    part = request.part(_some(request, _CHECKED_ROWS))
    # Examples with several labels may have weights of their own: by how many of them count.
    if any(not t.is_floating_point() and (t.ndim > 1 or bool((t < 0).any())) for t in _tensors(part.targets)):
        return True
    with contextlib.suppress(Exception):
        outputs = part.forward(part.inputs)
        losses = part.example_losses(outputs, part.targets)
        batch = part.loss_fn(outputs, part.targets).sum()
        return _near(batch, losses.mean(), request) or _near(batch, losses.sum(), request)
    return True


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _near(found: Tensor, expected: Tensor, request: Request) -> bool:
    weight = next(iter(request.named.values()))
    precise = torch.finfo(weight.dtype).bits >= 32 and not torch.is_autocast_enabled(weight.device.type)
    relative = 1e-3 if precise else 0.1
    both = torch.isfinite(found) & torch.isfinite(expected)
    scale = expected[both].abs().max() if bool(both.any()) else 0.0
    return bool(((found - expected)[both].abs() <= relative * scale + 1e-6).all())


def with_projection(loss_fn: LossFunction) -> LossFunction:
    """The loss plus a fixed linear function of the outputs, whose gradient does not vanish with the loss.

    Args:
        loss_fn: As in `diagonal_fisher`.
    """

    def loss(outputs: Any, targets: Any) -> Tensor:
        total = loss_fn(outputs, targets).sum()
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                # Unequal coefficients, because the sum of normalised outputs is constant.
                ramp = torch.linspace(0.5, 1.5, leaf.numel(), dtype=leaf.dtype, device=leaf.device)
                total = total + (leaf.flatten() * ramp).sum()
        return total

    return loss


def _agrees(method: Method, sample: Request, expected: list[dict[str, Tensor]]) -> bool:
    """Whether a method finds in each check of a sample what is expected there."""
    return all(_agrees_in(method, *check) for check in zip(_checks(sample), expected, strict=True))


def _agrees_in(method: Method, sample: Request, expected: dict[str, Tensor]) -> bool:
    try:
        found = method(sample)
    except Exception:  # whatever it is, `by_loop` has just done without
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
    if torch.is_autocast_enabled(expected.device.type):
        dtype = torch.get_autocast_dtype(expected.device.type)
    # Layers of a float64 model may compute in float32, as Llama's norms do.
    relative = {torch.float64: 1e-6, torch.float32: 1e-2}.get(dtype.to_real() if dtype.is_complex else dtype, 0.2)
    noise = (100 * torch.finfo(dtype).eps) ** power * largest
    return bool((found - expected).abs().max() <= relative * expected.max() + noise)


def by_loop(request: Request) -> dict[str, Tensor]:
    """Sums of powers of per-example gradients by one forward and backward pass per example.

    Args:
        request: Of any kind but `batch`.

    Returns:
        Σ_n |∂ℓ_n/∂θ|^power by parameter name.
    """
    totals = request.sums()
    weights = list(request.named.values())
    for n in range(request.num_examples):
        example = request.part(slice(n, n + 1))
        outputs = example.forward(example.inputs)
        for targets, shares in example.labelled(outputs):
            loss = request.loss_fn(outputs, targets).sum()
            if not loss.requires_grad:  # it depends on weights that are not wanted, or on none
                continue
            share = 1.0 if shares is None else shares[0]
            gradients = torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=request.kind == "exact")
            for name, gradient in zip(request.named, gradients, strict=True):
                if gradient is not None:
                    totals[name] += raised(gradient, request.power, totals[name].dtype) * share
    return totals


class _Backward(nn.Module):
    """The whole of one example's computation as a module, so that its weights can be replaced until the end of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Tensor]) -> None:
        """Leave the gradients in the weights' `.grad`."""
        compute().backward()  # type: ignore[no-untyped-call]


def by_backward(request: Request) -> dict[str, Tensor]:
    """As `by_loop`, through `backward()`, which is all that reentrant checkpoints allow.

    Args:
        request: Of any kind but `batch`.

    Returns:
        Σ_n |∂ℓ_n/∂θ|^power by parameter name.
    """
    totals = request.sums()
    wrapped = _Backward(request.model)
    for n in range(request.num_examples):
        example = request.part(slice(n, n + 1))
        labelled = list(example.labelled(example.forward(example.inputs)))
        for targets, shares in labelled:
            # Leaves of their own: the weights' hooks and gradients are somebody else's.
            weights = {name: weight.detach().requires_grad_() for name, weight in request.named.items()}

            def loss(example: Request = example, targets: Any = targets) -> Tensor:
                return request.loss_fn(example.forward(example.inputs), targets).sum()

            torch.func.functional_call(wrapped, {f"model.{name}": w for name, w in weights.items()}, (loss,))
            share = 1.0 if shares is None else shares[0]
            for name, weight in weights.items():
                if weight.grad is not None:
                    totals[name] += raised(weight.grad, request.power, totals[name].dtype) * share
    return totals


def _squared_batch_mean(request: Request) -> dict[str, Tensor]:
    """B times the square of the batch-mean gradient, for batches of B examples."""
    losses = request.example_losses(request.forward(request.inputs), request.targets)
    gradients = torch.autograd.grad(losses.mean(), list(request.named.values()), allow_unused=True)
    totals = zeros(request.named)
    for total, gradient in zip(totals.values(), gradients, strict=True):
        if gradient is not None:
            total += raised(gradient, 2, total.dtype) * request.num_examples
    return totals
