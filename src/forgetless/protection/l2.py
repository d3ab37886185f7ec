"""L2 anchoring: the plasticity penalty with importance 1 for every weight, α/2 Σ (θ_i − θ̂_i)²."""

import torch
from torch import nn

from forgetless.protection.base import FisherOf
from forgetless.protection.wpl import WPL


class L2(WPL):
    """Draws every shared weight back equally: what the penalty does without knowing what the earlier models need.

    Importance is not summed over models: a weight that several models used has importance 1, like any other. Only under
    the rule `merge` are models counted: the shared weights then are a moving average over models.
    """

    def consolidate(self, model: nn.Module, fisher_of: FisherOf) -> None:  # noqa: ARG002
        """Anchor the shared weights where the model left them, with importance 1."""
        if self.plasticity.rule != "merge":
            self.plasticity.rule = "replace"
        self.plasticity.consolidate(model, {name: torch.ones_like(p) for name, p in model.named_parameters()})
