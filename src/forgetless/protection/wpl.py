"""The weight plasticity loss as a protection: α/2 Σ F_i (θ_i − θ̂_i)², taken as a proximal step."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from forgetless.plasticity import WeightPlasticity
from forgetless.protection.base import FisherOf, Protection


class WPL(Protection):
    """Draws each shared weight back to where earlier models left it, as strongly as they need it.

    Args:
        shared_parameters: The weights that several models use.
        alpha: Strength α.
        damping: Added to the importance, as a share of its mean.

    Source: Benyahia et al. 2019, arXiv:1902.08232, eq. 8; see `forgetless.WeightPlasticity`.
    """

    uses_alpha: ClassVar[bool] = True

    def __init__(self, shared_parameters: Iterable[Tensor], alpha: float = 1e5, damping: float = 0.0) -> None:
        super().__init__(shared_parameters, alpha)
        self.plasticity = WeightPlasticity(self.shared_parameters, alpha, damping=damping)

    @contextlib.contextmanager
    def during(self, optimizer: Optimizer) -> Iterator[None]:
        """A context in which each step of the optimizer is followed by the proximal step."""
        self.plasticity.attach(optimizer)
        try:
            yield
        finally:
            self.plasticity.detach(optimizer)

    def consolidate(self, model: nn.Module, fisher_of: FisherOf) -> None:
        """Anchor the shared weights where the model left them, with its Fisher as importance."""
        self.plasticity.consolidate(model, fisher_of(model))

    def state_dict(self) -> dict[str, Any]:
        """Anchors and importances."""
        return self.plasticity.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore anchors and importances."""
        self.plasticity.load_state_dict(state)
