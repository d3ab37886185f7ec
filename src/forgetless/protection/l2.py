"""L2 anchoring: the plasticity penalty with importance 1 for every weight, α/2 Σ (θ_i − θ̂_i)²."""

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from forgetless.plasticity import AccumulationRule
from forgetless.protection.base import Evidence
from forgetless.protection.wpl import WPL


class L2(WPL):
    """Draws every shared weight back equally: what the penalty does without knowing what the earlier models need.

    Importance is not summed over models: a weight that several models used has importance 1, like any other. Only under
    the rule `merge` are models counted: the shared weights then are a moving average over models.

    Args:
        shared_parameters: The weights that several models use.
        alpha: Strength α.
        rule: `merge`, or any other for what is said above.
        decay: Of the rule `merge`.
    """

    strength: ClassVar[str | None] = "l2_alpha"
    options: ClassVar[tuple[str, ...]] = ("rule", "decay")
    uses_fisher: ClassVar[bool] = False

    def __init__(
        self,
        shared_parameters: Iterable[Tensor],
        alpha: float = 1.0,
        *,
        rule: AccumulationRule = "replace",
        decay: float = 0.9,
    ) -> None:
        super().__init__(shared_parameters, alpha, rule="merge" if rule == "merge" else "replace", decay=decay)

    def consolidate(self, model: nn.Module, evidence: Evidence) -> None:  # noqa: ARG002
        """Anchor the shared weights where the model left them, with importance 1."""
        self.plasticity.consolidate(model, {name: torch.ones_like(p) for name, p in model.named_parameters()})
