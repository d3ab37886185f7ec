"""A budget for what a fine-tuned model may forget, kept without the old data.

    minimise L_new(θ)   subject to   L_old(θ) − L_old(θ̂) ≤ nats

`Budget` says how much; `Budget.attach` follows the optimizer of any loop; `Keeper.finish` makes it hold.
"""

from forgetless.budget.keeper import BudgetReport, Keeper
from forgetless.budget.past import relative_entropy
from forgetless.budget.path import Increase, share_within
from forgetless.budget.terms import Budget, Hold

__all__ = ["Budget", "BudgetReport", "Hold", "Increase", "Keeper", "relative_entropy", "share_within"]
