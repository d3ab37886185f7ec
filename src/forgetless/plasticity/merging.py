"""How what one model needs is merged into what the models before it need; the rules are those of `WeightPlasticity`."""

import math
from collections.abc import Iterable, Sequence
from typing import get_args

import torch
from torch import Tensor

from forgetless.choices import AccumulationRule
from forgetless.errors import DivergedError, expect_one_of
from forgetless.plasticity.metric import TINY
from forgetless.sharding import Sums, anywhere, gathered, laid_out, local

# A weight of this importance is held as firmly as can be; sums of such stay finite.
_LARGEST_IMPORTANCE = 1e30


def check_rule(rule: str, decay: float, damping: float) -> None:
    """Refuse options of `WeightPlasticity` that are none.

    Args:
        rule: How importance accumulates over models.
        decay: How much of the old importance stays under `ema` and `merge`.
        damping: Added to the importance, as a share of its mean.

    Raises:
        ValueError: If `rule` is unknown, `decay` outside [0, 1], or `damping` negative or not finite.
    """
    expect_one_of("rule", rule, get_args(AccumulationRule))
    if not (math.isfinite(damping) and damping >= 0):
        raise ValueError(f"Expected damping to be finite and at least 0, but got {damping}. 0 is the paper's penalty.")
    if not 0 <= decay <= 1:
        raise ValueError(
            f"Expected decay in [0, 1], but got {decay}. It is the share of the old importance that stays."
        )


@torch.no_grad()
def fold(
    value: Tensor,
    parameter: Tensor,
    importance: Tensor | None,
    anchor: Tensor | None,
    rule: AccumulationRule,
    decay: float,
) -> tuple[Tensor, Tensor]:
    """Importance and anchor of a weight after one more model; the table in `WeightPlasticity` has the formulas.

    Args:
        value: F_j ≥ 0 of the model just trained. Overwritten.
        parameter: θ_j, where that model left the weight. It moves under `merge`.
        importance: F of the models before; None if there were none.
        anchor: Their θ̂; None if there were none.
        rule: Which.
        decay: Of the rules `ema` and `merge`.

    Returns:
        The new F, at most 10³⁰, and the new θ̂, a copy.
    """
    value.clamp_(max=_LARGEST_IMPORTANCE)
    rest = parameter
    if importance is None or anchor is None or rule == "replace":
        total = value
    elif rule == "sum":
        total = value.add_(importance)
    elif rule == "ema":
        total = value.lerp_(importance, decay)
    else:
        kept = importance if rule == "joint" else decay * importance
        total = value + kept
        # Where neither model needs the weight, 0/0 is 0: it stays where the later one left it.
        share = kept / total.clamp_min(TINY)
        rest = parameter.detach().clone() if rule == "joint" else parameter
        rest.lerp_(anchor, share.to(parameter.dtype))
    return total, rest.detach().clone()


@torch.no_grad()
def fold_part(
    mask: Tensor,
    value: Tensor,
    parameter: Tensor,
    importance: Tensor | None,
    anchor: Tensor | None,
    used: Tensor | None,
    rule: AccumulationRule,
    decay: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `fold`, where the model used a part of the weight: outside of it, all stays as it was.

    Args:
        mask: True where the model used it.
        value: As in `fold`, as are the others.
        parameter: See above. Under `merge` only the part moves.
        importance: See above.
        anchor: See above.
        used: True where a model before used it; None if that is all, or there was none.
        rule: See above.
        decay: See above.

    Returns:
        F, θ̂, and where this or a model before used the weight, None if that is all. What no model has used has F = 0.
    """
    if importance is None or anchor is None:
        importance, anchor, used = torch.zeros_like(value), parameter.detach().clone(), torch.zeros_like(mask)
    first = None if used is None else mask & ~used
    # For a mean with what was there before, what was not there is what comes.
    before = importance if first is None or rule != "ema" else torch.where(first, value, importance)
    stays = parameter.detach().clone() if rule == "merge" else parameter
    total, rest = fold(value, parameter, before, anchor, rule, decay)
    if rule == "merge":
        parameter.copy_(torch.where(mask, parameter, stays))
    used = None if used is None or not anywhere(~(used | mask)) else used | mask
    return torch.where(mask, total, importance), torch.where(mask, rest, anchor), used


def used_part(importance: Tensor) -> Tensor | None:
    """Where an importance is in no slice, along any dimension, that is 0 throughout; None if that is everywhere.

    Args:
        importance: F ≥ 0 of a weight.

    >>> used_part(torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))
    tensor([[ True,  True, False],
            [ True,  True, False]])
    """
    positive = importance != 0
    if not anywhere(~positive):
        return None
    mask = positive.clone() if positive.ndim < 2 else torch.ones_like(positive)
    for dim in range(positive.ndim if positive.ndim > 1 else 0):
        others = [other for other in range(positive.ndim) if other != dim]
        # Not amax, which refuses the part of a process that has none.
        mask = mask & (positive.sum(dim=others, keepdim=True) > 0)
    mask = laid_out(mask, importance)
    return mask if anywhere(~mask) else None


def check_importance(name: str, parameter: Tensor, value: Tensor) -> Tensor:
    """Refuse an importance that cannot be that of a weight.

    Args:
        name: Of the weight, for the message.
        parameter: The weight.
        value: Its importance.

    Returns:
        The importance, laid out over processes as the weight is.

    Raises:
        ValueError: If a shape or a device differs, or a value is negative or not finite.
    """
    if value.is_complex():
        raise ValueError(
            f"Expected a real importance of {name!r}, but got {value.dtype}. That of a complex weight is the mean of "
            "|g|²."
        )
    if value.shape != parameter.shape:
        raise ValueError(
            f"Expected importance of {name!r} in the weight's shape {tuple(parameter.shape)}, but got "
            f"{tuple(value.shape)}. Compute it from the same model that is consolidated."
        )
    if value.device != parameter.device:
        raise ValueError(
            f"Expected importance of {name!r} on {parameter.device}, but got {value.device}. Move it there first."
        )
    value = laid_out(value, parameter)
    if anywhere(~torch.isfinite(value)):
        raise DivergedError(
            f"Expected finite importance of {name!r}, but got inf or nan. Check that the model has not diverged."
        )
    if anywhere(value < 0):
        raise ValueError(
            f"Expected importance of {name!r} to be at least 0, but got {gathered(value).min().item():g}. "
            "A Fisher information is a mean of squares."
        )
    return value


def mean_over_all(tensors: Sequence[Tensor], masks: Sequence[Tensor | None]) -> float:
    """Mean over the elements of all tensors together that are in their masks; 0 of none.

    Args:
        tensors: Of any shapes. Of DTensors the mean is that over all processes.
        masks: For each tensor True where it counts; None is everywhere.
    """
    pairs = zip(map(local, tensors), masks, strict=True)
    parts = [value if mask is None else value[local(mask)] for value, mask in pairs]
    totals = [(float(part.sum(dtype=torch.float64)), float(part.numel())) for part in parts]
    if parts and not (sums := Sums(tensors)).is_local:
        return _mean(sums.each(torch.tensor(totals, dtype=torch.float64)).tolist())
    return _mean(totals)


def _mean(totals: Iterable[Sequence[float]]) -> float:
    totals = list(totals)
    return sum(total for total, _ in totals) / max(1, sum(count for _, count in totals))
