"""The template of protections that add a loss of earlier models to each training batch's: λ/M Σ_m R_m."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.protection.base import Decisions, Evidence, Protection, StrengthOptions

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class RehearsalOptions(StrengthOptions):
    """Options of a protection that rehearses earlier models.

    Attributes:
        strength: λ, weight of the earlier models' mean, at least 0.
        num_models: M, how many earlier models at most, at least 1: the newest. Each adds to the time of every step.
    """

    num_models: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(1, "num_models")


class Term(ABC):
    """What one earlier model adds to the loss of a training batch, before the strength.

    Args:
        decisions: What tells the model from others.
    """

    def __init__(self, decisions: Decisions) -> None:
        self.decisions = decisions

    @abstractmethod
    def __call__(self, batch: Any) -> Tensor:
        """A differentiable scalar at the present weights, a mean over predictions.

        Args:
            batch: The training batch of the present model.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What cannot be made again from the decisions."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: From `state_dict`.
        """


class Rehearsal(Protection):
    """Trains the next model on L(θ) + λ/M Σ_m R_m(θ), R_m a loss of one of the M newest earlier models.

    A subclass says in `term` what R_m is. Its gradient counts at every weight that the optimizer holds; nothing is
    drawn back to an anchor. A term that is not finite on a batch is left out of it.
    """

    options: RehearsalOptions
    symbol: ClassVar[str] = "λ"

    def _set_up(self) -> None:
        self._terms: list[Term] = []

    @abstractmethod
    def term(self, model: nn.Module, evidence: Evidence) -> Term:
        """R of a model.

        Args:
            model: An earlier model, with the weights as they now are, or as they were later if a state is restored.
            evidence: What may be asked about it.
        """

    @property
    def rehearsed(self) -> list[Decisions]:
        """The decisions of the rehearsed models, from the oldest to the newest."""
        return [term.decisions for term in self._terms]

    @contextlib.contextmanager
    def during(self, optimizer: Optimizer) -> Iterator[None]:  # noqa: ARG002
        """A context that does nothing: all is done in `extra_loss`."""
        yield

    def extra_loss(self, batch: Any) -> Tensor | None:
        """λ times the earlier models' mean on a batch; None where there is none.

        What it draws, such as dropout masks, does not advance the random state.

        Args:
            batch: The training batch of the present model.
        """
        return rehearsed_loss(self._terms, batch, self.strength, self.shared_parameters)

    def consolidate(self, model: nn.Module, evidence: Evidence) -> None:
        """Rehearse the model from now on, in place of the oldest if there are too many."""
        new = self.term(model, evidence)
        others = [term for term in self._terms if term.decisions != new.decisions or not new.decisions]
        self._terms = [*others, new][-self.options.num_models :]

    def reset(self) -> None:
        """Rehearse no model."""
        self._terms = []

    def state_dict(self) -> dict[str, Any]:
        """Decisions and states of the rehearsed models."""
        return {"terms": [{"decisions": list(term.decisions), **term.state_dict()} for term in self._terms]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: From `state_dict`.

        Raises:
            InputError: If there are rehearsed models and no `recall` was given to the constructor.
        """
        stored = state["terms"]
        recall = self._expect_recall(len(stored)) if stored else None
        self._terms = []
        for each in stored:
            assert recall is not None
            term = self.term(*recall(tuple(each["decisions"])))
            term.load_state_dict(each)
            self._terms.append(term)


def rehearsed_loss(
    losses: Sequence[Callable[[Any], Tensor]], batch: Any, strength: float, weights: Sequence[Tensor]
) -> Tensor | None:
    """A strength times the mean of the finite ones among some losses of a batch; None where there is none.

    What the losses draw, such as dropout masks, does not advance the random state.

    Args:
        losses: Of earlier models.
        batch: The training batch of the present model.
        strength: Of the mean; nothing is computed at 0.
        weights: Of the models; they say on which devices random numbers are drawn.
    """
    import torch

    if strength == 0 or not losses:
        return None
    devices = {weight.device for weight in weights if weight.is_cuda}
    with torch.random.fork_rng(devices):
        found = [loss(batch) for loss in losses]
    finite = [loss for loss in found if torch.isfinite(loss)]
    return strength * torch.stack(finite).mean() if finite else None
