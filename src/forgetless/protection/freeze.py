"""Freezing: θ_s stays where the first model that used it left it."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from forgetless.protection.base import Evidence, Protection


class Freeze(Protection):
    """Shared weights that an earlier model used do not move: the limit α → ∞ of `l2`.

    Nothing is forgotten, by construction; what it costs is what later models could have made of these weights.
    """

    def __init__(self, shared_parameters: Iterable[Tensor], alpha: float = 0.0) -> None:
        super().__init__(shared_parameters, alpha)
        self._frozen = [False] * len(self.shared_parameters)

    @contextlib.contextmanager
    def during(self, optimizer: Optimizer) -> Iterator[None]:  # noqa: ARG002
        """A context in which the frozen weights require no gradient, so that an optimizer skips them."""
        held = [p for p, frozen in zip(self.shared_parameters, self._frozen, strict=True) if frozen and p.requires_grad]
        for parameter in held:
            parameter.requires_grad_(False)
            parameter.grad = None
        try:
            yield
        finally:
            for parameter in held:
                parameter.requires_grad_(True)

    def consolidate(self, model: nn.Module, evidence: Evidence) -> None:  # noqa: ARG002
        """Freeze the shared weights that the model holds."""
        used = {id(parameter) for parameter in model.parameters()}
        self._frozen = [frozen or id(p) in used for p, frozen in zip(self.shared_parameters, self._frozen, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Which shared weights are frozen."""
        return {"frozen": list(self._frozen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore which shared weights are frozen."""
        self._frozen = list(state["frozen"])
