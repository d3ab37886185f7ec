"""Elastic weight consolidation: α/2 Σ_j Σ_i F_j,i (θ_i − θ_j,i)², one quadratic for every earlier model j."""

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor

from forgetless.protection.wpl import WPL


class EWC(WPL):
    """Draws every weight of an earlier model back to where that model left it, as strongly as that model needs it.

    Two things set it apart from `wpl`: it holds *all* weights of an earlier model, not only those that another shares
    (weights that nothing else trains do not move anyway), and each model is held where it was itself, while `wpl`'s
    anchor moves on to the newest model. The sum of the quadratics is one quadratic with importance Σ_j F_j around the
    precision-weighted mean of the θ_j, so that memory does not grow with the models (the rule `joint` of
    `forgetless.WeightPlasticity`). There is no damping. Like `wpl` it is taken as a proximal step.

    Source: Kirkpatrick et al. 2017, arXiv:1612.00796, eq. 3, with one quadratic per task kept. There the data change
    from task to task; here they stay and the model changes.

    Args:
        shared_parameters: All weights of the models that are to be kept.
        alpha: Strength α (λ in the paper).
    """

    strength: ClassVar[str | None] = "ewc_alpha"
    options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, shared_parameters: Iterable[Tensor], alpha: float = 1e5) -> None:
        super().__init__(shared_parameters, alpha, rule="joint")
