"""Freezing: θ_s stays where the first model that used it left it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.protection.base import PROTECTIONS, Evidence, Protection, ProtectionOptions

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class FreezeOptions(ProtectionOptions):
    """Freezing has no options."""


@PROTECTIONS.register
class Freeze(Protection):
    """Shared weights that an earlier model used do not move: the limit α → ∞ of `l2`.

    Nothing is forgotten, by construction; what it costs is what later models could have made of these weights.
    """

    name: ClassVar[str] = "freeze"
    label: ClassVar[str] = "freeze"
    in_sentence: ClassVar[str] = "frozen shared weights"
    colour: ClassVar[str | None] = "#6E6E6E"
    Options: ClassVar[type[ProtectionOptions]] = FreezeOptions

    def _set_up(self) -> None:
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
