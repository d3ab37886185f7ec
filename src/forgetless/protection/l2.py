"""L2 anchoring: the plasticity penalty with importance 1 for every weight, α/2 Σ (θ_i − θ̂_i)²."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.protection.base import PROTECTIONS, Evidence, ProtectionOptions
from forgetless.protection.quadratic import QuadraticOptions, QuadraticProtection

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class L2Options(QuadraticOptions):
    """Options of L2 anchoring; importance is 1, so that α has another scale than that of `wpl`."""

    fits: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"strength": 1.0, "rule": "replace"},
        "fine-tune": {"strength": 0.1},
    }


@PROTECTIONS.register
class L2(QuadraticProtection):
    """Draws every shared weight back equally: what the penalty does without knowing what the earlier models need.

    Importance is not summed over models: a weight that several models used has importance 1, like any other. Only under
    the rule `merge` are models counted: the shared weights then are a moving average over models.
    """

    name: ClassVar[str] = "l2"
    label: ClassVar[str] = "L2 anchor"
    in_sentence: ClassVar[str] = "the L2 anchor"
    colour: ClassVar[str | None] = "#009E73"
    Options: ClassVar[type[ProtectionOptions]] = L2Options

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | ({} if self.options.moves_weights else {"rule": "replace"})

    def importance(self, model: nn.Module, evidence: Evidence) -> Mapping[str, Tensor]:  # noqa: ARG002
        """1 for every weight."""
        return {name: parameter.detach().new_ones(parameter.shape) for name, parameter in model.named_parameters()}
