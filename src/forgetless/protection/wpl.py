"""The weight plasticity loss: α/2 Σ F_i (θ_i − θ̂_i)², F the Fisher information."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.configuration import fitting
from forgetless.protection.base import PROTECTIONS, Evidence, ProtectionOptions
from forgetless.protection.quadratic import QuadraticOptions, QuadraticProtection

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class WPLOptions(QuadraticOptions):
    """Options of the weight plasticity loss.

    Attributes:
        damping: Added to the importance, as a share of its mean; 0 is the paper's penalty.
    """

    damping: float = fitting()

    fits: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"strength": 1e5, "damping": 0.0},
        "two-model": {"damping": 1e-3},
        "landscape": {"strength": 10.0},
        "fine-tune": {"strength": 100.0},
        "search on text": {"strength": 3e3},
        "search on images": {"strength": 30.0},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_not_negative("damping")


@PROTECTIONS.register
class WPL(QuadraticProtection):
    """Draws each shared weight back to where earlier models left it, as strongly as they need it.

    F is the earlier model's diagonal Fisher information, accumulated over models by a rule.

    Source: Benyahia et al. 2019, arXiv:1902.08232, eq. 8; see `forgetless.WeightPlasticity`.
    """

    name: ClassVar[str] = "wpl"
    label: ClassVar[str] = "weight plasticity"
    in_sentence: ClassVar[str] = "the weight plasticity loss"
    colour: ClassVar[str | None] = "#0072B2"
    Options: ClassVar[type[ProtectionOptions]] = WPLOptions
    uses_fisher: ClassVar[bool] = True
    options: WPLOptions

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"damping": self.options.damping}

    def importance(self, model: nn.Module, evidence: Evidence) -> Mapping[str, Tensor]:  # noqa: ARG002
        """The diagonal Fisher information."""
        return evidence.fisher()
