"""What the loss makes of labels: which distribution it belongs to, and where it reads them.

Labels drawn from the model's prediction are of use only if the loss reads them, at the outputs that they were drawn
at, and takes the outputs for the distribution that they were drawn from. All three show in ∂ℓ/∂o, the gradient of one
example's loss with respect to the outputs, at chosen labels.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from forgetless.errors import InputError
from forgetless.importance.labels import Labels, logits_of
from forgetless.importance.request import Request
from forgetless.importance.words import warn

_Gradient = Callable[[Tensor], Tensor]
"""∂ℓ/∂o at some targets."""

_NUM_TRIALS = 4
"""Random sets of targets that are changed, to see which outputs they act on."""


def predictive(request: Request) -> Labels | None:
    """The labels of a request with their distribution and place found out, or None if no example tells.

    Args:
        request: Of kind `monte_carlo` or `exact`, with a tensor of targets.

    Raises:
        InputError: If the distribution has no name and cannot be told, or the loss does not read the labels.
    """
    labels = request.labels
    for n in range(min(request.num_examples, 3)):
        example = request.part(slice(n, n + 1))
        outputs = example.forward(example.inputs)
        logits, targets = logits_of(outputs, labels.kind), example.targets
        if not logits.requires_grad or (not targets.is_floating_point() and not bool((targets >= 0).any())):
            continue

        def gradient(targets: Tensor, outputs: Any = outputs, logits: Tensor = logits) -> Tensor:
            loss = request.loss_fn(outputs, targets).sum()
            if not loss.requires_grad:
                return torch.zeros_like(logits)
            (found,) = torch.autograd.grad(loss, logits, retain_graph=True, allow_unused=True)
            return torch.zeros_like(logits) if found is None else found

        found = _with_likelihood(labels, logits.detach(), targets, gradient)
        rows = logits.movedim(labels.class_dim, -1).shape[:-1]
        is_refused = found.likelihood == "categorical" and (rows != targets.shape or targets.is_floating_point())
        if is_refused or found.likelihood == "gaussian":
            return found
        other = _changed(targets, logits, found, torch.ones_like(targets, dtype=torch.bool))
        response = (gradient(targets) - gradient(other)).abs()
        if not bool(response.any()):
            raise InputError(
                f"Expected a loss that depends on the targets for kind={labels.kind!r}, but it does not change with "
                "them. Labels that are among the inputs, as with Hugging Face models, cannot be drawn: leave them "
                "out there and compute the loss from the logits and the targets."
            )
        if found.likelihood == "categorical":
            if targets.ndim > 1:
                found = _with_place(found, logits, targets, gradient, response)
            found = _of_logits_or_probabilities(found, logits.detach(), targets, gradient)
        return found
    return None


def _with_likelihood(labels: Labels, outputs: Tensor, targets: Tensor, gradient: _Gradient) -> Labels:
    """The labels with the distribution that the user named, or the one that the loss shows."""
    one_each = outputs.numel() == targets.numel()
    if labels.likelihood in {None, "categorical"} and not targets.is_floating_point():
        logits = outputs.movedim(labels.class_dim, -1)
        if logits.shape[-1] > 1 and (logits.shape[:-1] == targets.shape or not one_each):
            return replace(labels, likelihood="categorical")
        if labels.likelihood and one_each:
            raise InputError(
                "Expected at least two classes for likelihood='categorical', but got outputs of shape "
                f"{tuple(outputs.shape)}: softmax of one class is always 1. Use likelihood='bernoulli'."
            )
    if labels.likelihood == "categorical" or not one_each:
        return replace(labels, likelihood="categorical")  # refused where labels are drawn
    if labels.likelihood != "gaussian":
        of_logits = _reads_as_bernoulli(outputs, targets, gradient)
        if of_logits is None and labels.likelihood and labels.kind == "exact" and outputs.numel() > 1:
            raise InputError(
                "Expected a binary cross entropy for likelihood='bernoulli' and kind='exact' with more than one "
                "output, but got another loss. Use kind='monte_carlo'."
            )
        if of_logits is not None or labels.likelihood:
            return replace(labels, likelihood="bernoulli", of_logits=of_logits is not False)
    if targets.is_floating_point() and _is_squared_error(outputs.reshape(targets.shape), gradient):
        return replace(labels, likelihood="gaussian")
    if labels.likelihood == "gaussian":
        raise InputError(
            "Expected a squared error of floating-point targets for likelihood='gaussian', but got another loss. "
            "Use kind='empirical'."
        )
    raise InputError(
        f"Expected a loss whose likelihood can be told for kind={labels.kind!r}, but got outputs of shape "
        f"{tuple(outputs.shape)} with {targets.dtype} targets of shape {tuple(targets.shape)} and a loss that is "
        "neither a binary cross entropy nor a squared error. Set likelihood, or use kind='empirical'."
    )


def _reads_as_bernoulli(outputs: Tensor, targets: Tensor, gradient: _Gradient) -> bool | None:
    """Whether the loss takes the outputs for logits (True) or probabilities (False) of 1, or neither (None).

    The mean gradient p ∂ℓ(1) + (1 − p) ∂ℓ(0) under the model's own distribution is 0.
    """
    try:
        at_0, at_1 = gradient(torch.zeros_like(targets)), gradient(torch.ones_like(targets))
    except (IndexError, RuntimeError, ValueError):  # a loss for which 1 is no label
        return None
    largest = torch.maximum(at_0.abs(), at_1.abs())
    if not bool((at_0 - at_1 > 0).any()) or bool((at_0 < 0).any()) or bool((at_1 > 0).any()):
        return None
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-3}.get(outputs.dtype, 0.05)
    for of_logits in (True, False):
        p = outputs.sigmoid() if of_logits else outputs
        if bool((p >= 0).all() and (p <= 1).all() and ((p * at_1 + (1 - p) * at_0).abs() <= tolerance * largest).all()):
            return of_logits
    return None


def _is_squared_error(mean: Tensor, gradient: _Gradient) -> bool:
    """Whether ∂ℓ/∂o = h (o − y) with an h ≥ 0 per output that does not depend on the other outputs."""
    h = gradient(mean - 1)
    offset = torch.linspace(-2, 3, mean.numel(), dtype=mean.dtype, device=mean.device).view(mean.shape)
    expected = h * offset.view(h.shape)
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-3}.get(mean.dtype, 0.05) * h.abs().max()
    return bool(
        (h >= 0).all()
        and h.any()
        and (gradient(mean) == 0).all()
        and ((gradient(mean - offset) - expected).abs() <= tolerance * 3).all()
    )


def _of_logits_or_probabilities(labels: Labels, outputs: Tensor, targets: Tensor, gradient: _Gradient) -> Labels:
    """The labels of what the loss takes the outputs for: logits, of which ∂ℓ(c)/∂o ∝ p − e_c, or p itself.

    Warns:
        UserWarning: If it is neither.
    """
    outputs = outputs.movedim(labels.class_dim, -1)
    classes = outputs.argmin(-1)  # unlikely ones, at which the gradient is large
    targets = targets.where(targets < 0, labels.placed(classes.to(targets.dtype), targets))
    found = gradient(targets).movedim(labels.class_dim, -1)
    chosen = F.one_hot(classes, outputs.shape[-1]).to(outputs.dtype)
    p = outputs.softmax(-1)
    others = (p * (1 - chosen)).sum(-1, keepdim=True)  # 1 − p_c
    scale = -(found * chosen).sum(-1, keepdim=True)
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-3}.get(outputs.dtype, 0.1) * found.abs().max()
    if not bool(((found * others - scale * (p - chosen)).abs() > tolerance).any()):
        return labels
    sums_to_1 = bool((outputs >= 0).all()) and bool(((outputs.sum(-1) - 1).abs() < 1e-3).all())
    if sums_to_1 and not bool((found * (1 - chosen)).any()):
        return replace(labels, of_logits=False)
    warn(
        f"forgetless: labels for kind={labels.kind!r} are drawn from the softmax of the outputs, but the loss is not "
        "the cross entropy of it (label smoothing, a temperature inside the loss, one class against all others). What "
        "is computed is the mean squared gradient at these labels; scale the outputs in the model, or use "
        "kind='empirical'."
    )
    return labels


def _changed(targets: Tensor, logits: Tensor, labels: Labels, where: Tensor) -> Tensor:
    """Other labels at some of the targets; those that are ignored stay."""
    num = 2 if labels.likelihood == "bernoulli" else logits.shape[labels.class_dim]
    other = 1 - targets if targets.is_floating_point() else (targets + 1) % num
    return targets.where(~where | (targets < 0), other)


def _with_place(labels: Labels, logits: Tensor, targets: Tensor, gradient: _Gradient, response: Tensor) -> Labels:
    """The labels with the distance from an output to the target that the loss compares it with, along dim 1."""
    generator = torch.Generator().manual_seed(0)
    length, before = targets.shape[1], gradient(targets)

    def size(changed: Tensor) -> Tensor:
        return (gradient(changed) - before).abs().movedim(labels.class_dim, -1).sum(-1)

    full = response.movedim(labels.class_dim, -1).sum(-1)
    read = full > 1e-6 * full.max()
    trials = []
    for _ in range(_NUM_TRIALS):
        where = torch.rand(targets.shape, generator=generator).to(targets.device) < 0.5
        # Another target may act a little on all outputs, through the weights of classes in a weighted mean.
        trials.append((where & (targets >= 0), read & (size(_changed(targets, logits, labels, where)) > 0.5 * full)))
    for shift in sorted(range(1 - length, length), key=abs):
        # Output t reads target t + shift.
        if all(torch.equal(found, read & _shifted(where, shift)) for where, found in trials):
            return replace(labels, shift=shift)
    raise InputError(
        f"Expected a loss that compares each output with one target for kind={labels.kind!r}, but got one in which a "
        "target acts on other outputs as well, or on those at changing distances. Labels drawn from single outputs "
        "do not fit it: use kind='empirical'."
    )


def _shifted(where: Tensor, shift: int) -> Tensor:
    """At t what lies at t + shift along dim 1, False beyond the ends."""
    result, length = torch.zeros_like(where), where.shape[1]
    result[:, max(0, -shift) : length - max(0, shift)] = where[:, max(0, shift) : length + min(0, shift)]
    return result
