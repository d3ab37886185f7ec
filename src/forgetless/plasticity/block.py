"""Held weights that are drawn together after an optimizer's step, the small ones packed."""

import torch
from torch import Tensor

from forgetless.plasticity.budget import expected_increase
from forgetless.plasticity.metric import real, wide_type
from forgetless.plasticity.packing import Packed, Packing
from forgetless.plasticity.penalty import pulls

Columns = tuple[list[Tensor], list[Tensor], list[Tensor]]
"""Parameters, anchors and importances."""


class Block:
    """Held weights that are drawn together, the small ones packed.

    Args:
        held: Their places among the shared weights.
        columns: Parameters, anchors and importances of these.
        is_known: Whether they were asked for before; only then they are packed.

    Attributes:
        held: Their places among the shared weights.
        parameters: The weights. What is drawn of complex ones are their real and imaginary parts.
        anchors: Of what `load` returns.
        importances: Of what `load` returns.
        space: Space for one number per weight, at least float32, such as a metric.
        is_settled: False if they will be packed when they are asked for again.
    """

    def __init__(self, held: list[int], columns: Columns, *, is_known: bool) -> None:
        self.parameters = columns[0]
        parameters, anchors, importances = real_columns(columns)
        packing = Packing(parameters)
        self.is_settled = is_known or not packing.blocks
        if not self.is_settled:
            packing = Packing(parameters, any_packed=False)
        self.held = held
        self._weights, self.space = Packed(packing, parameters), Packed(packing, parameters, wide_type)
        self.anchors = Packed(packing, parameters).load(anchors)
        self.importances = Packed(packing, importances).load(importances)
        self._shares: tuple[float, list[Tensor]] | None = None

    def load(self) -> list[Tensor]:
        """The weights' values: flat tensors, of which `store` copies back, and weights that are not packed."""
        return self._weights.load([real(parameter) for parameter in self.parameters])

    def store(self) -> None:
        """Copy what was loaded, and changed since, back into the weights."""
        self._weights.store([real(parameter) for parameter in self.parameters])

    def increase(self) -> float:
        """½ Σ F_i (θ_i − θ̂_i)² of these weights."""
        return expected_increase(self.load(), self.anchors, self.importances)

    def draw(self, metric: float | list[Tensor]) -> None:
        """Draw the weights to their anchors, by s/(1 + s) of the way.

        Args:
            metric: d/(lr·α) + `TINY`, of what `load` returns. Tensors are overwritten. A number changes with lr and α
                only, and so do the shares.
        """
        weights = self.load()
        torch._foreach_lerp_(weights, self.anchors, self._pulls(metric, weights))
        self.store()

    def _pulls(self, metric: float | list[Tensor], weights: list[Tensor]) -> list[Tensor]:
        if not isinstance(metric, float):
            return pulls(self.importances, metric, weights)
        if self._shares is None or self._shares[0] != metric:
            self._shares = (metric, pulls(self.importances, metric, weights))
        return self._shares[1]


def real_columns(columns: Columns) -> Columns:
    """The same, with complex weights and anchors as their real and imaginary parts, which share an importance.

    Args:
        columns: Of any floating-point types.
    """
    parameters, anchors, importances = columns
    if not any(parameter.is_complex() for parameter in parameters):
        return columns
    pairs = zip(parameters, importances, strict=True)
    both = [f.unsqueeze(-1).expand(*f.shape, 2) if p.is_complex() else f for p, f in pairs]
    return [real(p) for p in parameters], [real(a) for a in anchors], both
