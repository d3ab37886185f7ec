"""A budget in one `train()` of a Trainer: its state is that of the optimizer, and so in every checkpoint."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from forgetless.budget import Budget, BudgetReport, Keeper
from forgetless.integrations.old_examples import OldExamples

KEY = "forgetless"
"""Where the state is in that of the optimizer: what belongs to no weight is saved and loaded as it is."""


class BudgetRun:
    """One `train()` under a budget.

    Args:
        budget: To keep.
        model: Unwrapped.
        optimizer: The one inside.
        saved: The state of a checkpoint; None at the start.
        old: Old examples with their loss; None where the model writes its own.

    Attributes:
        model: Unwrapped.
        keep: What keeps it.
        was_saved: Whether a checkpoint has got the state of this.
    """

    def __init__(
        self,
        budget: Budget,
        model: nn.Module,
        optimizer: Optimizer,
        saved: Mapping[str, Any] | None,
        old: OldExamples | None,
    ) -> None:
        if old is not None:
            budget = replace(budget, on=list(old))
        self.model, self.was_saved = model, False
        self.keep = Keeper(budget, model, optimizer, loss_fn=None if old is None else old.loss_fn, state=saved)
        self._saving = optimizer.register_state_dict_post_hook(self._add_to_state)

    def _add_to_state(self, _optimizer: Optimizer, state: dict[str, Any]) -> None:
        self.was_saved = True
        state["state"][KEY] = self.keep.state_dict()

    def logs(self, _step: int) -> dict[str, float]:
        """What the budget does: λ and the increase of the old loss, as measured."""
        return {"budget_multiplier": self.keep.multiplier, "old_loss_increase": self.keep.measured().mean}

    def leave(self) -> None:
        """Follow the optimizer no more."""
        self._saving.remove()
        self.keep.leave()

    def finish(self) -> BudgetReport:
        """Make the budget hold, and leave."""
        self._saving.remove()
        return self.keep.finish()
