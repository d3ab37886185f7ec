"""Elastic weight consolidation: α/2 Σ_j Σ_i F_j,i (θ_i − θ_j,i)², one quadratic for every earlier model j."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.protection.base import PROTECTIONS, Evidence, ProtectionOptions, StrengthOptions
from forgetless.protection.quadratic import QuadraticProtection

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class EWCOptions(StrengthOptions):
    """Options of elastic weight consolidation.

    Attributes:
        strength: α (λ in the paper), at least 0; it sums over the earlier models.
    """

    fits: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"strength": 1e5},
        "landscape": {"strength": 10.0},
        "search on text": {"strength": 1e2},
        "search on images": {"strength": 0.1},
    }


@PROTECTIONS.register
class EWC(QuadraticProtection):
    """Draws every weight of an earlier model back to where that model left it, as strongly as that model needs it.

    Two things set it apart from `wpl`: it holds *all* weights of an earlier model, not only those that another shares
    (weights that nothing else trains do not move anyway), and each model is held where it was itself, while `wpl`'s
    anchor moves on to the newest model. The sum of the quadratics is one quadratic with importance Σ_j F_j around the
    precision-weighted mean of the θ_j, so that memory does not grow with the models (the rule `joint` of
    `forgetless.WeightPlasticity`). There is no damping. Like `wpl` it is taken as a proximal step.

    Source: Kirkpatrick et al. 2017, arXiv:1612.00796, eq. 3, with one quadratic per task kept. There the data change
    from task to task; here they stay and the model changes.
    """

    name: ClassVar[str] = "ewc"
    label: ClassVar[str] = "elastic weights (EWC)"
    colour: ClassVar[str | None] = "#E69F00"
    Options: ClassVar[type[ProtectionOptions]] = EWCOptions
    uses_fisher: ClassVar[bool] = True
    holds_all: ClassVar[bool] = True

    def _settings(self) -> dict[str, Any]:
        return {"alpha": self.options.strength, "rule": "joint"}

    def importance(self, model: nn.Module, evidence: Evidence) -> Mapping[str, Tensor]:  # noqa: ARG002
        """The diagonal Fisher information."""
        return evidence.fisher()
