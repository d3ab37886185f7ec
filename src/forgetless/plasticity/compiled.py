"""The step in one compiled pass over weights, anchors, importances and Adam's moments, where there is a compiler."""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from forgetless.plasticity.metric import AdamMetric, ChunkMetric, wide

# A call of a compiled function takes longer than the arithmetic on fewer elements.
FEWEST_ELEMENTS = 2**15


class CompiledPass:
    """Draws dense weights of SGD and Adam in one pass; the first call takes a while, as `torch.compile` does.

    Where nothing can be compiled it says so once, and does nothing from then on.
    """

    def __init__(self) -> None:
        self._is_usable = True

    def takes(self, metric: float | ChunkMetric) -> bool:
        """Whether there is a pass for this metric.

        Args:
            metric: See `Block.draw`.
        """
        if isinstance(metric, AdamMetric):
            return self._is_usable and not any(isinstance(f, Tensor) and f.ndim > 0 for f in metric.factors)
        return self._is_usable and isinstance(metric, float)

    def draw(self, weight: Tensor, anchor: Tensor, importance: Tensor, metric: float | ChunkMetric, chunk: Any) -> bool:
        """Draw a weight to its anchor, in place.

        Args:
            weight: As a flat view.
            anchor: Likewise.
            importance: Likewise.
            metric: One that `takes` accepts.
            chunk: The weight as a whole, by `cut`.

        Returns:
            False if it could not be compiled; nothing is changed then.
        """
        if not self._is_usable:
            return False
        try:
            if isinstance(metric, AdamMetric):
                moment, factor = chunk.of(metric.moments[chunk.tensor]), metric.factors[chunk.tensor]
                _compiled(_adam_pass)(weight, anchor, importance, moment, _number(factor), _number(metric.epsilon))
            elif isinstance(metric, float):
                _compiled(_number_pass)(weight, anchor, importance, _number(metric))
        except Exception as error:  # whatever a compiler, or the lack of one, comes to: the step is taken without
            self._is_usable = False
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(
                f"The proximal step could not be compiled, and is taken without: {type(error).__name__}: {reason}. "
                "Install a C++ compiler (on a GPU triton), or leave compiled=True out.",
                stacklevel=2,
            )
        return self._is_usable


@cache
def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Once for all weights, whatever their sizes and the strength."""
    compiled: Callable[..., None] = torch.compile(function, dynamic=True)
    return compiled


def _adam_pass(
    weight: Tensor, anchor: Tensor, importance: Tensor, moment: Tensor, factor: Tensor, epsilon: Tensor
) -> None:
    importance = wide(importance)
    share = importance / (wide(moment).sqrt() * factor + epsilon + importance)
    weight.lerp_(anchor, share.to(weight.dtype))


def _number_pass(weight: Tensor, anchor: Tensor, importance: Tensor, metric: Tensor) -> None:
    importance = wide(importance)
    weight.lerp_(anchor, (importance / (importance + metric)).to(weight.dtype))


def _number(value: float | Tensor) -> Tensor:
    """As a tensor: for each new number of Python it would be compiled anew."""
    return torch.as_tensor(value, dtype=torch.float64) if not isinstance(value, Tensor) else value
