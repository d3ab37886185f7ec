"""Anchors and importances that were saved: checked before they are taken, then copied."""

from collections.abc import Sequence

import torch
from torch import Tensor

from forgetless.sharding import anywhere


def check_state(
    parameters: Sequence[Tensor], anchors: Sequence[Tensor | None], importances: Sequence[Tensor | None]
) -> None:
    """Refuse anchors and importances that are not those of these weights.

    Args:
        parameters: The weights.
        anchors: One or None for each weight.
        importances: One or None for each weight.

    Raises:
        ValueError: If the number of weights or a shape differs, one is there without the other, a value is not finite,
            or an importance is negative.
    """
    if len(anchors) != len(parameters) or len(importances) != len(parameters):
        raise ValueError(
            f"Expected the state of {len(parameters)} shared parameters, but got {len(anchors)} anchors and "
            f"{len(importances)} importances. Build the plasticity from the same weights, in the same order."
        )
    for i, (parameter, anchor, importance) in enumerate(zip(parameters, anchors, importances, strict=True)):
        _check_state(i, parameter, anchor, importance)


def _check_state(i: int, parameter: Tensor, anchor: Tensor | None, importance: Tensor | None) -> None:
    if (anchor is None) != (importance is None):
        raise ValueError(
            f"Expected anchor and importance {i} to be held together, but got one without the other. "
            "Pass what state_dict returned."
        )
    for kind, value in (("anchor", anchor), ("importance", importance)):
        if value is not None and value.shape != parameter.shape:
            raise ValueError(
                f"Expected {kind} {i} of shape {tuple(parameter.shape)}, but got {tuple(value.shape)}. "
                "Build the plasticity from the same weights, in the same order."
            )
        if value is not None and anywhere(~torch.isfinite(value)):
            raise ValueError(f"Expected finite {kind} {i}, but got inf or nan. The state is damaged.")
    if importance is not None and anywhere(importance < 0):
        raise ValueError(f"Expected importance {i} to be at least 0, but got a negative one. The state is damaged.")
