"""The weight plasticity loss as a protection: α/2 Σ F_i (θ_i − θ̂_i)², taken as a proximal step."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from forgetless.plasticity import AccumulationRule, WeightPlasticity
from forgetless.protection.base import Evidence, Protection


class WPL(Protection):
    """Draws each shared weight back to where earlier models left it, as strongly as they need it.

    Args:
        shared_parameters: The weights that several models use.
        alpha: Strength α.
        damping: Added to the importance, as a share of its mean.
        rule: How importance accumulates over models; see `forgetless.WeightPlasticity`.
        decay: Of the rules `ema` and `merge`.

    Source: Benyahia et al. 2019, arXiv:1902.08232, eq. 8; see `forgetless.WeightPlasticity`.
    """

    strength: ClassVar[str | None] = "alpha"
    options: ClassVar[tuple[str, ...]] = ("damping", "rule", "decay")
    uses_fisher: ClassVar[bool] = True

    def __init__(
        self,
        shared_parameters: Iterable[Tensor],
        alpha: float = 1e5,
        damping: float = 0.0,
        *,
        rule: AccumulationRule = "sum",
        decay: float = 0.9,
    ) -> None:
        shared_parameters = list(shared_parameters)
        self.plasticity = WeightPlasticity(shared_parameters, alpha, damping=damping, rule=rule, decay=decay)
        super().__init__(shared_parameters, alpha)

    @property
    def alpha(self) -> float:
        """Strength α; may be set at any time."""
        return self.plasticity.alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        self.plasticity.alpha = value

    @property
    def moves_weights(self) -> bool:
        """Under the rule `merge`, `consolidate` changes the shared weights."""
        return self.plasticity.rule == "merge"

    @contextlib.contextmanager
    def during(self, optimizer: Optimizer) -> Iterator[None]:
        """A context in which each step of the optimizer is followed by the proximal step."""
        self.plasticity.attach(optimizer)
        try:
            yield
        finally:
            self.plasticity.detach(optimizer)

    def consolidate(self, model: nn.Module, evidence: Evidence) -> None:
        """Anchor the shared weights where the model left them, with its Fisher as importance."""
        self.plasticity.consolidate(model, evidence.fisher())

    def penalty(self) -> float:
        """α/2 Σ F_i (θ_i − θ̂_i)² at the present weights."""
        return float(self.plasticity.penalty().detach())

    def reset(self) -> None:
        """Forget every anchor and importance."""
        self.plasticity.reset()

    def state_dict(self) -> dict[str, Any]:
        """Anchors and importances."""
        return self.plasticity.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore anchors and importances."""
        self.plasticity.load_state_dict(state)
