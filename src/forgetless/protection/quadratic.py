"""The template of all quadratic penalties, α/2 Σ F_i (θ_i − θ̂_i)²: a method says what its importance F is."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.choices import AccumulationRule
from forgetless.configuration import fitting
from forgetless.protection.base import Evidence, Protection, StrengthOptions

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class QuadraticOptions(StrengthOptions):
    """Options of a quadratic penalty.

    Attributes:
        strength: α of the penalty, at least 0.
        rule: How importance accumulates over models; see `forgetless.WeightPlasticity`.
        decay: Of the rules `ema` and `merge`, in [0, 1]: the share of the old that stays.
    """

    rule: AccumulationRule = fitting()
    decay: float = 0.9

    fits: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {"rule": "sum"}, "search": {"rule": "ema"}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_share("decay")

    @property
    def moves_weights(self) -> bool:
        """Under the rule `merge`, `consolidate` changes the shared weights."""
        return self.rule == "merge"


class QuadraticProtection(Protection):
    """Draws each shared weight back to where earlier models left it, taken as a proximal step after the optimizer's.

    A subclass says in `importance` what F is.

    Attributes:
        plasticity: Anchors θ̂, importances F, and the step.
    """

    options: QuadraticOptions

    def _set_up(self) -> None:
        from forgetless.plasticity import WeightPlasticity

        self.plasticity = WeightPlasticity(self.shared_parameters, **self._settings())

    def _settings(self) -> dict[str, Any]:
        """Arguments of `WeightPlasticity`."""
        return {"alpha": self.options.strength, "rule": self.options.rule, "decay": self.options.decay}

    @abstractmethod
    def importance(self, model: nn.Module, evidence: Evidence) -> Mapping[str, Tensor]:
        """F of the model just trained, by its parameter names.

        Args:
            model: The model just trained.
            evidence: What may be asked about it.
        """

    @property
    def strength(self) -> float:
        """α; may be set at any time."""
        return self.plasticity.alpha

    @strength.setter
    def strength(self, value: float) -> None:
        self.plasticity.alpha = value

    @classmethod
    def held_copies(cls, options: Any, num_outputs: float) -> float:  # noqa: ARG003
        """Anchor and importance."""
        return 2

    @contextlib.contextmanager
    def during(self, optimizer: Optimizer) -> Iterator[None]:
        """A context in which each step of the optimizer is followed by the proximal step."""
        self.plasticity.attach(optimizer)
        try:
            yield
        finally:
            self.plasticity.detach(optimizer)

    def consolidate(self, model: nn.Module, evidence: Evidence) -> None:
        """Anchor the shared weights where the model left them, with its importance."""
        # Every zero counts: what a search model has not seen is not what it does not use.
        self.plasticity.consolidate(model, self.importance(model, evidence), where={})

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
