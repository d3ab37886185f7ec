"""No protection: the baseline."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.protection.base import BASELINE, PROTECTIONS, Evidence, Protection, ProtectionOptions

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class NoOptions(ProtectionOptions):
    """Plain training has no options."""


@PROTECTIONS.register
class NoProtection(Protection):
    """Plain training: the weights go where the present model's loss sends them."""

    name: ClassVar[str] = BASELINE
    label: ClassVar[str] = "no protection"
    colour: ClassVar[str | None] = "#D55E00"
    Options: ClassVar[type[ProtectionOptions]] = NoOptions
    protects: ClassVar[bool] = False

    @contextlib.contextmanager
    def during(self, optimizer: Optimizer) -> Iterator[None]:  # noqa: ARG002
        """A context that does nothing."""
        yield

    def consolidate(self, model: nn.Module, evidence: Evidence) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: there is nothing to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""
