"""Memory aware synapses: α/2 Σ Ω_i (θ_i − θ̂_i)², Ω how much an earlier model's outputs depend on each weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.protection.base import PROTECTIONS, Evidence, ProtectionOptions
from forgetless.protection.quadratic import QuadraticOptions, QuadraticProtection

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class MASOptions(QuadraticOptions):
    """Options of memory aware synapses; Ω grows with the square of the logits, so that α compares with no other."""

    fits: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {"strength": 1.0}}


@PROTECTIONS.register
class MAS(QuadraticProtection):
    """Draws each shared weight back as strongly as the outputs of the earlier models depend on it.

        Ω_i = 1/N Σ_n |∂ ‖f(x_n)‖² / ∂θ_i|

    f(x_n) are the model's outputs before any softmax: the logits of an image, or of every word of a chunk of text,
    which is one example. Gradients are those of single examples. No labels are needed, and Ω does not vanish where the
    model fits the data. Over several models Ω is summed (or accumulated by another rule) and the anchor moves to the
    newest model.

    Source: Aljundi et al. 2018, arXiv:1711.09601, section 4. Their λ Σ Ω (θ − θ̂)² is ours at α = 2 λ; theirs is added
    to the loss, ours taken as a proximal step.
    """

    name: ClassVar[str] = "mas"
    label: ClassVar[str] = "memory aware (MAS)"
    colour: ClassVar[str | None] = "#8C510A"
    Options: ClassVar[type[ProtectionOptions]] = MASOptions
    uses_examples: ClassVar[bool] = True

    def importance(self, model: nn.Module, evidence: Evidence) -> Mapping[str, Tensor]:
        """Ω on held-out batches."""
        from forgetless.importance import mean_absolute_gradient

        held = {id(parameter) for parameter in model.parameters()}
        shared = [parameter for parameter in self.shared_parameters if id(parameter) in held]
        return mean_absolute_gradient(model, evidence.batches(), _squared_norm, parameters=shared) if shared else {}


def _squared_norm(outputs: Any, _targets: Tensor) -> Tensor:
    """‖f(x)‖² of one example."""
    logits: Tensor = getattr(outputs, "logits", outputs)
    return logits.square().sum()
