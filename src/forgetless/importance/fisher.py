"""How much a trained model needs each of its weights: the diagonal of the Fisher information.

For an example n with loss ℓ_n, the diagonal is the mean over examples of a squared per-example gradient,

    F_i = 1/N Σ_n (∂ℓ_n/∂θ_i)²,

and the kinds differ in the label that ℓ_n is taken at. The gradient of the batch mean, which an ordinary backward
pass leaves in `.grad`, is another quantity: squaring it gives about F/B for batches of B examples.

Layers that hold most weights have a fast path (`forgetless.importance.layers`), everything else goes through
`torch.func.vmap` (`forgetless.importance.vmap`). Either is compared with single-example gradients on some examples of
the first batch (`forgetless.importance.method`), so that a model which the fast path does not understand is computed
the general way instead of wrongly; the fast path again on the batches 2, 8, 32 and so on. The mean of absolute values
in place of squares goes the same ways.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn

from forgetless.choices import FisherKind, Likelihood, Unit
from forgetless.errors import DivergedError, InputError, expect_one_of
from forgetless.importance.batches import inputs_only, pair
from forgetless.importance.labels import Labels
from forgetless.importance.layers import UnknownLayerError
from forgetless.importance.method import CHECKED_EXAMPLES, Chosen, choose_method, still_right
from forgetless.importance.model import selected, untouched, unwrapped
from forgetless.importance.prediction import predictive
from forgetless.importance.processes import failing_together, processes_of, summed, told_of, whole_weights
from forgetless.importance.request import Batch, LossFunction, Power, Request, zeros
from forgetless.importance.targets import made_targets, num_targets, own_loss
from forgetless.importance.words import warn


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[Batch] | Iterable[Any],
    loss_fn: LossFunction | None = None,
    kind: FisherKind = "empirical",
    *,
    parameters: Iterable[Tensor | str] | None = None,
    class_dim: int = -1,
    generator: torch.Generator | None = None,
    likelihood: Likelihood | None = None,
    per: Unit = "example",
) -> dict[str, Tensor]:
    """Diagonal Fisher information of a model's weights, F_i = mean over examples of (∂ℓ_n/∂θ_i)².

    | kind | label of ℓ_n | what it is |
    |---|---|---|
    | `empirical` | the true one | the empirical Fisher; vanishes where the model fits the examples perfectly |
    | `monte_carlo` | one drawn from the model's own prediction | an unbiased estimate of the Fisher |
    | `exact` | Σ_c p_c (∂ℓ_n(c)/∂θ)² over all labels c | the Fisher itself; one backward pass per class or output |
    | `batch` | the true one | the square of the *batch-mean* gradient, averaged over batches, as in the 2019 code |

    `batch` is not a Fisher: it shrinks like 1/B with the batch size B. It is for comparison only.

    The model's own prediction is the distribution that its outputs stand for, the `likelihood`:

    | likelihood | labels are drawn from | told by |
    |---|---|---|
    | `categorical` | softmax of the logits | integer targets, one for each row of two or more logits |
    | `bernoulli` | sigmoid of each output | a binary cross entropy of one target per output; where it reads |
    |             |                        | probabilities, labels are drawn from the outputs themselves |
    | `gaussian` | N(o, 1/h), h = ∂²ℓ/∂o² | a squared error of one target per output; the variance is 1 for half |
    |            |                        | of it, ½ for the whole, D/2 for a mean over D outputs |

    The model is evaluated in eval mode (no dropout, running BatchNorm statistics) and left as it was found: modes,
    `requires_grad`, `.grad`, buffers and random state.

    Under DistributedDataParallel and `fully_shard` each process passes its own examples, as many as it has, and all
    get the mean over all of them; of sharded weights each gets its part. Weights are whole on every process meanwhile,
    in their own type, and so are the sums; `parameters` asks for some weights at a time.

    Source: Benyahia et al. 2019 (arXiv:1902.08232), eq. 7–8, whose code used `batch`. Kunstner et al. 2019
    (arXiv:1905.12558) compare `empirical` with the true Fisher.

    Args:
        model: Any module. Its output is a tensor, or a tuple, list or dict of tensors, with examples along dim 0.
            Labels are drawn from its one tensor, or from what it calls `logits`.
        batches: Pairs (inputs, targets), examples along dim 0 of each. Inputs are a tensor, a tuple (positional
            arguments), a mapping (keyword arguments), or a list, as a DataLoader makes it, that the model takes as one
            argument or as its arguments, but not both. Targets are a tensor, a tuple, list or dict of tensors, or None.
            What is one example is decided here: for a language model, one sequence chunk. Without `loss_fn` batches are
            inputs alone.
        loss_fn: Maps (outputs, targets) of a batch to a scalar. It is called on batches of one example, so that mean
            and sum reductions give the same result where an example has one target. Where it has T targets (a
            sequence chunk), a mean over them gives 1/T² of what their sum gives. None is the negative log likelihood,
            summed over the targets of an example, for `monte_carlo` and `exact`: these need no targets.
        kind: See the table.
        parameters: Only these weights, by identity or by name (the shared ones, say), whether they are frozen or not.
            By default all that require a gradient; `model.parameters()` for all.
        class_dim: Where the logits' classes lie in the output, for `monte_carlo` and `exact`. A negative target, such
            as the -100 that cross entropy ignores, is no class and stays what it is.
        generator: Draws the labels of `monte_carlo`. By default a copy of the global generator, whose own state is
            not advanced; pass one to get independent draws in successive calls.
        likelihood: See the table. None finds it from targets and loss; without `loss_fn` it is `categorical`.
        per: `target` gives Σ_n (Σ_t ∂ℓ_nt/∂θ_i)² / Σ_n T_n, the sum over the targets t of an example squared, per
            target: the unit in which α = 1 is the posterior's own strength, whatever the length of a chunk.
            `loss_fn` then gives one loss per target (reduction="none"); targets below 0 are not counted.

    Returns:
        Parameter name (as in `model.named_parameters()`) → F, in the weight's shape, device and sharding, at least
        float32, and real: |∂ℓ/∂Re θ|² + |∂ℓ/∂Im θ|² of a complex weight. The unit is loss² per weight². A weight that
        the output does not depend on has F = 0.

    Raises:
        ValueError: If there are no batches, inputs and targets of a batch differ in length or hold what has no
            examples, the model holds none of the wanted weights, holds them in parts otherwise than by `fully_shard`
            (FSDP1, tensor parallelism) or cannot be evaluated on one example, a kind or likelihood does not fit the
            targets, the loss does not depend on the targets that are drawn or on others than one per output, a gradient
            is not finite (the error names the parameter), or another process has failed.

    Warns:
        UserWarning: If the model mixes the examples of a batch, the loss of a batch is neither mean nor sum of that of
            its examples (class weights under a mean, contrastive losses), every F is 0, or examples go one by one.

    >>> linear = nn.Linear(1, 1, bias=False)
    >>> x = torch.tensor([[1.0], [2.0]])
    >>> squared_error = lambda output, target: (output - target).square().sum() / 2
    >>> with torch.no_grad():
    ...     _ = linear.weight.fill_(1.0)
    >>> diagonal_fisher(linear, [(x, torch.zeros(2, 1))], squared_error)["weight"]  # (1² + 4²) / 2
    tensor([[8.5000]])
    """
    expect_one_of("kind of Fisher", kind, get_args(FisherKind))
    if loss_fn is None and kind not in {"monte_carlo", "exact"}:
        raise InputError(
            f"Expected a loss_fn for kind={kind!r}, but got none. Only kind='monte_carlo' and kind='exact' can do "
            "without, with batches of inputs alone."
        )
    if likelihood is not None:
        expect_one_of("likelihood", likelihood, get_args(Likelihood))
    expect_one_of("per", per, get_args(Unit))
    return _mean_over_examples(
        model, batches, loss_fn, kind, 2, parameters, class_dim, generator, likelihood=likelihood, per=per
    )


def mean_absolute_gradient(
    model: nn.Module,
    batches: Iterable[Batch],
    function: LossFunction,
    *,
    parameters: Iterable[Tensor | str] | None = None,
) -> dict[str, Tensor]:
    """Mean over examples of the absolute per-example gradient, 1/N Σ_n |∂s_n/∂θ_i|, of any scalar s of an example.

    Eval mode, model left as it was found, and several processes are as in `diagonal_fisher`, and so is the way it is
    computed.

    Args:
        model: Any module, as in `diagonal_fisher`.
        batches: Pairs (inputs, targets), as in `diagonal_fisher`.
        function: Maps (outputs, targets) of a batch of one example to its s, a scalar.
        parameters: Only these weights, by identity or name; by default all that require a gradient.

    Returns:
        Parameter name → mean, in the weight's shape and device, at least float32. The unit is that of s per weight.

    Raises:
        ValueError: As in `diagonal_fisher`.

    >>> linear = nn.Linear(1, 1, bias=False)
    >>> x = torch.tensor([[1.0], [-2.0]])
    >>> mean_absolute_gradient(linear, [(x, torch.zeros(2))], lambda output, target: output.sum())["weight"]
    tensor([[1.5000]])
    """
    return _mean_over_examples(model, batches, function, "empirical", 1, parameters)


def _mean_over_examples(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFunction | None,
    kind: FisherKind,
    power: Power,
    parameters: Iterable[Tensor | str] | None,
    class_dim: int = -1,
    generator: torch.Generator | None = None,
    likelihood: Likelihood | None = None,
    per: Unit = "example",
) -> dict[str, Tensor]:
    """Mean over examples (or sum over examples per target) of |∂ℓ_n/∂θ|^power, by parameter name."""
    processes = processes_of(model)
    model = unwrapped(model)
    weights = selected(model, parameters)
    frozen = [name for name, weight in weights.items() if not weight.requires_grad]
    device = next(iter(weights.values())).device
    with (
        failing_together(processes, device),
        whole_weights(model, weights) as named,
        untouched(model, named, generator) as labels_generator,
    ):
        labels = Labels(kind, labels_generator, class_dim, likelihood)
        loss = own_loss(labels) if loss_fn is None else loss_fn
        wanted = Request(model, named, None, None, loss, labels, power)
        totals, count = _own_totals(wanted, batches, loss_fn is not None, per)
    totals, count = summed(totals, count, weights, processes)
    if count == 0:
        raise InputError(
            "Expected at least one example to compute the Fisher from, but got none. Pass a fresh iterator."
        )
    for total in totals.values():
        total /= count
    has_values = {}
    for name, (is_bad, has_values[name]) in zip(totals, told_of(totals), strict=True):
        if is_bad:
            raise DivergedError(
                f"Expected finite gradients for the Fisher, but got inf or nan in parameter {name!r}. "
                "Check that the model has not diverged and that its inputs are finite."
            )
    _tell_of_zeros(has_values, frozen)
    return totals


def _own_totals(wanted: Request, batches: Iterable[Any], given_loss: bool, per: Unit) -> tuple[dict[str, Tensor], int]:
    """Powers and number of examples (or targets) of this process's batches."""
    totals = zeros(wanted.named)
    try:
        return totals, _add_up(_requests(wanted, batches, given_loss), totals, per)
    except _LateError:
        if isinstance(batches, Iterator):
            raise InputError(
                "Expected a model that keeps the examples of a batch in their order, but got one that reorders a "
                "later batch, when earlier ones cannot be gone through again. Pass the batches as a list or a "
                "DataLoader, not as an iterator."
            ) from None
    totals = zeros(wanted.named)
    return totals, _add_up(_requests(wanted, batches, given_loss), totals, per, fast=False)


class _LateError(Exception):
    """The fast way is wrong for a later batch, though it was right for the first."""


def _requests(wanted: Request, batches: Iterable[Any], given_loss: bool) -> Iterator[Request]:
    """What is wanted of each batch that has examples."""
    drawn = wanted.labels.drawn
    for batch in batches:
        inputs, targets = pair(batch, wanted.model) if given_loss else (inputs_only(batch, wanted.model), None)
        request = wanted._replace(inputs=inputs, targets=targets)
        if request.num_examples == 0:
            continue
        if drawn and targets is None:
            request = request._replace(targets=made_targets(request))
        yield request


def _add_up(requests: Iterable[Request], totals: dict[str, Tensor], per: Unit, fast: bool = True) -> int:
    """Add the powers of all requests to the totals, in place; returns the number of examples or targets."""
    method: Chosen | None = None
    labels: Labels | None = None
    num_checked = count = 0
    next_check = 2
    for num_batches, request in enumerate(requests, start=1):
        if method is None or num_checked < min(CHECKED_EXAMPLES, request.num_examples):
            method = choose_method(request, fast)
            num_checked = request.num_examples
        elif num_batches == next_check:
            next_check *= 4
            if method.is_fast and not still_right(request._replace(in_pairs=method.in_pairs)):
                raise _LateError
        request = request._replace(in_pairs=method.in_pairs)
        if request.labels.drawn:
            labels = labels or predictive(request)
            request = request._replace(labels=labels or request.labels)
        try:
            found = method(request)
        except UnknownLayerError:  # this batch takes another way through the model than those before
            fast = fast and not method.may_move_rows
            method = choose_method(request, fast)
            found = method(request)
        for name, powers in found.items():
            totals[name] += powers
        count += request.num_examples if per == "example" else num_targets(request)
    return count


def _tell_of_zeros(has_values: Mapping[str, bool], frozen: list[str]) -> None:
    """Warn of an importance that protects nothing."""
    if not any(has_values.values()):
        warn(
            "forgetless: the importance of every weight is 0, so that it protects nothing. The loss of a single "
            "example does not change with the weights: a loss over the pairs of a batch (a contrastive one) has "
            "nothing to compare then, outputs may be detached from the weights, or all labels are ignored."
        )
    elif silent := [name for name in frozen if not has_values[name]]:
        warn(
            f"forgetless: the importance of the frozen weight {silent[0]!r} and {len(silent) - 1} others is 0. The "
            "model may detach its outputs, as in torch.no_grad: it has to be differentiable for what is asked."
        )
