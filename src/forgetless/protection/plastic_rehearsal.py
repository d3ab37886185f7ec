"""Weight plasticity together with a rehearsal of earlier models, under one strength."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.protection.base import Evidence
from forgetless.protection.rehearsal import Rehearsal, RehearsalOptions
from forgetless.protection.wpl import WPL, WPLOptions

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class PlasticRehearsalOptions(RehearsalOptions, WPLOptions):
    """Options of weight plasticity together with a rehearsal.

    Attributes:
        strength: λ, weight of what earlier models would lose by both accounts, at least 0.
        alpha: α of the quadratic penalty relative to the rehearsal, at least 0; 0 is the rehearsal alone.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_not_negative("alpha")

    def of_plasticity(self) -> WPLOptions:
        """The options of the plasticity alone, at the strength λ α."""
        return WPLOptions(
            strength=(self.strength or 0.0) * self.alpha, rule=self.rule, decay=self.decay, damping=self.damping
        )


class PlasticRehearsal(Rehearsal):
    """A rehearsal with the quadratic penalty beside it: L(θ) + λ (1/M Σ_m R_m(θ) + α/2 Σ F_i (θ_i − θ̂_i)²).

    The penalty is taken as in `wpl`, by a proximal step. To be mixed in before a rehearsal.
    """

    uses_fisher: ClassVar[bool] = True
    options: Any  # PlasticRehearsalOptions, and those of the rehearsal that it is mixed with

    def _set_up(self) -> None:
        super()._set_up()
        self._wpl = WPL(self.shared_parameters, self.options.of_plasticity())

    @property
    def strength(self) -> float:
        """λ; may be set at any time."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength = value
        self._wpl.strength = value * self.options.alpha

    @classmethod
    def held_copies(cls, options: Any, num_outputs: float) -> float:
        """Those of both."""
        return super().held_copies(options, num_outputs) + WPL.held_copies(options, num_outputs)

    @contextlib.contextmanager
    def during(self, optimizer: Optimizer) -> Iterator[None]:
        """A context in which each step of the optimizer is followed by the proximal step."""
        with super().during(optimizer), self._wpl.during(optimizer):
            yield

    def consolidate(self, model: nn.Module, evidence: Evidence) -> None:
        """Anchor the shared weights where the model left them, and rehearse it from now on."""
        self._wpl.consolidate(model, evidence)  # first, because it may move weights
        super().consolidate(model, evidence)

    def penalty(self) -> float:
        """λ α/2 Σ F_i (θ_i − θ̂_i)² at the present weights."""
        return self._wpl.penalty()

    def reset(self) -> None:
        """Forget every anchor and importance, and rehearse no model."""
        self._wpl.reset()
        super().reset()

    def state_dict(self) -> dict[str, Any]:
        """Anchors and importances; decisions and states of the rehearsed models."""
        return {"plasticity": self._wpl.state_dict(), **super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self._wpl.load_state_dict(state["plasticity"])
