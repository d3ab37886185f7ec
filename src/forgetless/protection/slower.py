"""A lower learning rate for weights that earlier models use."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.errors import InputError
from forgetless.protection.base import PROTECTIONS, Evidence, Protection, ProtectionOptions, StrengthOptions

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class SlowerOptions(StrengthOptions):
    """Options of a lower learning rate.

    Attributes:
        strength: What the learning rate is divided by, at least 1.
    """

    fits: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {"strength": 10.0}, "fine-tune": {"strength": 3.0}}

    def check_strength(self) -> None:
        """Refuse a divisor below 1."""
        if self.strength is not None and not (math.isfinite(self.strength) and self.strength >= 1):
            raise InputError(
                f"Expected the strength of slower to be finite and at least 1, but got {self.strength}. The learning "
                "rate is divided by it."
            )


@PROTECTIONS.register
class Slower(Protection):
    """Trains shared weights that an earlier model used at the learning rate η / strength, all others at η.

    A strength of 1 is plain training. Rates that a schedule sets between two steps are divided, too. Weight decay falls
    with the rate where the optimizer multiplies it by the rate, as AdamW and SGD do.
    """

    name: ClassVar[str] = "slower"
    label: ClassVar[str] = "divided learning rate"
    in_sentence: ClassVar[str] = "a divided learning rate"
    colour: ClassVar[str | None] = "#B8A9C9"
    Options: ClassVar[type[ProtectionOptions]] = SlowerOptions
    symbol: ClassVar[str] = "divisor"
    decays: ClassVar[bool] = False

    def _set_up(self) -> None:
        self._used = [False] * len(self.shared_parameters)

    @contextlib.contextmanager
    def during(self, optimizer: Optimizer) -> Iterator[None]:
        """A context in which each step finds the used weights in groups of their own, with a lower rate."""
        slow = {id(p) for p, used in zip(self.shared_parameters, self._used, strict=True) if used}
        groups: list[dict[str, Any]] | None = None  # the optimizer's own, during a step

        def before(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
            nonlocal groups
            if slow and self.strength != 1:
                groups = optimizer.param_groups
                optimizer.param_groups = [part for group in groups for part in _split(group, slow, self.strength)]

        def after(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
            nonlocal groups
            if groups is not None:
                optimizer.param_groups, groups = groups, None

        handles = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            after(optimizer, (), {})  # where a step ended with an error

    def consolidate(self, model: nn.Module, evidence: Evidence) -> None:  # noqa: ARG002
        """Slow down the shared weights that the model holds."""
        held = {id(parameter) for parameter in model.parameters()}
        self._used = [used or id(p) in held for p, used in zip(self.shared_parameters, self._used, strict=True)]

    def reset(self) -> None:
        """Train all weights alike until the next `consolidate`."""
        self._set_up()

    def state_dict(self) -> dict[str, Any]:
        """Which shared weights an earlier model used."""
        return {"used": list(self._used)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore which shared weights an earlier model used."""
        self._used = list(state["used"])


def _split(group: dict[str, Any], slow: set[int], divisor: float) -> Iterator[dict[str, Any]]:
    """An optimizer's group in up to two: weights at the learning rate, and those at a lower one."""
    for is_slow, rate in ((False, group["lr"]), (True, group["lr"] / divisor)):
        weights = [weight for weight in group["params"] if (id(weight) in slow) is is_slow]
        if weights:
            yield {**group, "params": weights, "lr": rate}
