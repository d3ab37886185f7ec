"""The control arm: no protection, but steps of the shared weights as long as those under another protection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forgetless.protection.base import PROTECTIONS, ProtectionOptions
from forgetless.protection.none import NoProtection


@dataclass(frozen=True, kw_only=True)
class MatchedOptions(ProtectionOptions):
    """The control arm has no options of its own."""


@PROTECTIONS.register
class MatchedLearningRate(NoProtection):
    """Plain training in which an experiment sets the learning rate of the shared weights.

    It is set such that the mean step of the shared weights becomes that under `wpl`, which separates what the
    protection does from what smaller steps alone do. Both must be asked for.
    """

    name: ClassVar[str] = "matched-lr"
    label: ClassVar[str] = "lower learning rate"
    colour: ClassVar[str | None] = "#CC79A7"
    Options: ClassVar[type[ProtectionOptions]] = MatchedOptions
    matches: ClassVar[str | None] = "wpl"
