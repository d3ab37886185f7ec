"""How what one model needs is merged into what the models before it need; the rules are those of `WeightPlasticity`."""

import math
from collections.abc import Iterable
from typing import get_args

import torch
from torch import Tensor

from forgetless.choices import AccumulationRule
from forgetless.errors import DivergedError, expect_one_of
from forgetless.plasticity.metric import TINY

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


def check_importance(name: str, parameter: Tensor, value: Tensor) -> None:
    """Refuse an importance that cannot be that of a weight.

    Args:
        name: Of the weight, for the message.
        parameter: The weight.
        value: Its importance.

    Raises:
        ValueError: If a shape or a device differs, or a value is negative or not finite.
    """
    if value.shape != parameter.shape:
        raise ValueError(
            f"Expected importance of {name!r} in the weight's shape {tuple(parameter.shape)}, but got "
            f"{tuple(value.shape)}. Compute it from the same model that is consolidated."
        )
    if value.device != parameter.device:
        raise ValueError(
            f"Expected importance of {name!r} on {parameter.device}, but got {value.device}. Move it there first."
        )
    if not bool(torch.isfinite(value).all()):
        raise DivergedError(
            f"Expected finite importance of {name!r}, but got inf or nan. Check that the model has not diverged."
        )
    if bool((value < 0).any()):
        raise ValueError(
            f"Expected importance of {name!r} to be at least 0, but got {value.min().item():g}. "
            "A Fisher information is a mean of squares."
        )


def mean_over_all(tensors: Iterable[Tensor]) -> float:
    """Mean over the elements of all tensors together; 0 of none.

    Args:
        tensors: Of any shapes.
    """
    totals = [(float(tensor.sum(dtype=torch.float64)), tensor.numel()) for tensor in tensors]
    return sum(total for total, _ in totals) / max(1, sum(count for _, count in totals))
