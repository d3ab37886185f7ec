"""Memory aware synapses: α/2 Σ Ω_i (θ_i − θ̂_i)², Ω how much an earlier model's outputs depend on each weight."""

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn

from forgetless.importance import mean_absolute_gradient
from forgetless.plasticity import AccumulationRule
from forgetless.protection.base import Evidence
from forgetless.protection.wpl import WPL


class MAS(WPL):
    """Draws each shared weight back as strongly as the outputs of the earlier models depend on it.

        Ω_i = 1/N Σ_n |∂ ‖f(x_n)‖² / ∂θ_i|

    f(x_n) are the model's outputs before any softmax: the logits of an image, or of every word of a chunk of text,
    which is one example. Gradients are those of single examples. No labels are needed, and Ω does not vanish where the
    model fits the data. Over several models Ω is summed (or accumulated by another rule) and the anchor moves to the
    newest model.

    Source: Aljundi et al. 2018, arXiv:1711.09601, section 4. Their λ Σ Ω (θ − θ̂)² is ours at α = 2 λ; theirs is added
    to the loss, ours taken as a proximal step.

    Args:
        shared_parameters: The weights that several models use.
        alpha: Strength α. Ω grows with the square of the logits, so that it does not compare with `wpl`'s.
        rule: How Ω accumulates over models; see `forgetless.WeightPlasticity`.
        decay: Of the rules `ema` and `merge`.
    """

    strength: ClassVar[str | None] = "mas_alpha"
    options: ClassVar[tuple[str, ...]] = ("rule", "decay")
    uses_fisher: ClassVar[bool] = False

    def __init__(
        self,
        shared_parameters: Iterable[Tensor],
        alpha: float = 1.0,
        *,
        rule: AccumulationRule = "sum",
        decay: float = 0.9,
    ) -> None:
        super().__init__(shared_parameters, alpha, rule=rule, decay=decay)

    def consolidate(self, model: nn.Module, evidence: Evidence) -> None:
        """Anchor the shared weights where the model left them, with its Ω on held-out batches as importance."""
        held = {id(parameter) for parameter in model.parameters()}
        shared = [parameter for parameter in self.shared_parameters if id(parameter) in held]
        found = mean_absolute_gradient(model, evidence.batches(), _squared_norm, parameters=shared) if shared else {}
        self.plasticity.consolidate(model, found)


def _squared_norm(outputs: Any, _targets: Tensor) -> Tensor:
    """‖f(x)‖² of one example."""
    logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs.logits
    return logits.square().sum()
