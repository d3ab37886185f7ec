"""The weight plasticity loss as the code of 2019 computes it: to see what ours adds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.configuration import fitting
from forgetless.errors import DivergedError
from forgetless.protection.base import PROTECTIONS, Evidence, Protection, ProtectionOptions, StrengthOptions

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class WPL2019Options(StrengthOptions):
    """Options of the loss of 2019, with the values of its recurrent search.

    Attributes:
        strength: α of the penalty, at least 0.
        share: Of a new model's importance in the moving average, in [0, 1].
        clip: The importance of each tensor is scaled down to this norm; not at all if 0.
        compounding: Multiply α into the stored importance at every model, as the code does, so that it grows with the
            number of models; else α multiplies the penalty.
        fall: What is subtracted from α in each epoch of a search from `fall-from` on, down to 0.
        fall_from: The first epoch, from 0, in which α is smaller.
        reset_every: Epochs of a search between two resets of the importance; never if 0.
    """

    strength: float = fitting(basic=True)
    share: float = 0.9
    clip: float = 10.0
    compounding: bool = False
    fall: float = 1.0
    fall_from: int = 15
    reset_every: int = 2

    fits: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {"strength": 60.0}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_share("share")
        self.expect_not_negative("clip", "fall")
        self.expect_at_least(0, "fall_from", "reset_every")


@PROTECTIONS.register
class WPL2019(Protection):
    """Adds α/2 Σ F_i (θ_i − θ̂_i)² to each batch's loss, F a moving average of squared batch-mean gradients.

    After a model was trained, for each tensor that it uses, with g the gradient of its mean loss on a held-out batch
    (of several batches, the mean of g²), s = `share` and c = `clip`:

        F ← (1 − s) F + s g²,    F ← F · min(1, c / ‖F‖₂),    θ̂ ← θ

    and with `compounding` also F ← α F, while the penalty is ½ Σ F_i (θ_i − θ̂_i)². In epoch e of a search α is
    max(0, α − fall · max(0, e − fall_from + 1)).

    g² is no Fisher information: it shrinks with the batch. The penalty is a part of the loss, so that both share one
    gradient clip, and a strong pull slows the learning of the model down; see `wpl` for what this project does instead.

    Source: the code of Benyahia et al. 2019 (github.com/kcyu2014/multi-model-forgetting) and the settings of its
    recurrent search. Differences: compounding is an option; the held-out batch is used for nothing else; a weight
    without a gradient counts as one with gradient 0, the weights that it protects are the search's (`--protect cell`
    is nearest; the code leaves out input and state matrices, too), and a resumed search has its importance.
    """

    name: ClassVar[str] = "wpl-2019"
    label: ClassVar[str] = "weight plasticity, 2019 code"
    in_sentence: ClassVar[str] = "the weight plasticity loss of the 2019 code"
    colour: ClassVar[str | None] = "#6A3D9A"
    Options: ClassVar[type[ProtectionOptions]] = WPL2019Options
    options: WPL2019Options

    def _set_up(self) -> None:
        self._anchors: dict[int, Tensor] = {}  # by the place of the weight
        self._importances: dict[int, Tensor] = {}
        self._epoch = 0

    @classmethod
    def held_copies(cls, options: Any, num_outputs: float) -> float:  # noqa: ARG003
        """Anchor and importance, and what autograd keeps of the penalty."""
        return 4

    @property
    def alpha(self) -> float:
        """α in the present epoch."""
        fallen = self.options.fall * max(0, self._epoch - self.options.fall_from + 1)
        return max(0.0, self.strength - fallen)

    def begin_epoch(self, epoch: int) -> None:
        """Lower α, and every so many epochs drop the importance.

        Args:
            epoch: From 0.
        """
        self._epoch = epoch
        if self.options.reset_every and epoch % self.options.reset_every == 0:
            self.reset()

    @contextlib.contextmanager
    def during(self, optimizer: Optimizer) -> Iterator[None]:  # noqa: ARG002
        """A context that does nothing: the penalty is a part of the loss."""
        yield

    def extra_loss(self, batch: Any) -> Tensor | None:  # noqa: ARG002
        """The penalty; None where it is 0 whatever the weights are.

        Args:
            batch: Of the present model.
        """
        return self._penalty() if self._importances and self._factor > 0 else None

    @property
    def _factor(self) -> float:
        """What the stored importance is multiplied by."""
        return 1.0 if self.options.compounding else self.alpha

    def _penalty(self) -> Tensor:
        from forgetless.plasticity import quadratic_penalty

        weights = [self.shared_parameters[i] for i in self._importances]
        anchors = [self._anchors[i] for i in self._importances]
        return quadratic_penalty(weights, anchors, list(self._importances.values()), self._factor)

    def consolidate(self, model: nn.Module, evidence: Evidence) -> None:
        """Take in the model's squared gradient, and anchor the shared weights that it uses.

        Args:
            model: The model just trained.
            evidence: Gives the held-out batches.

        Raises:
            DivergedError: If a gradient is not finite; what is held stays as it is.
        """
        import torch

        from forgetless.importance import diagonal_fisher

        wanted = {
            name: weight
            for name, weight in model.named_parameters()
            if id(weight) in self._index and weight.requires_grad
        }
        squares = diagonal_fisher(model, evidence.batches(), evidence.loss, "batch", parameters=list(wanted.values()))
        if not all(torch.isfinite(squares[name]).all() for name in wanted):
            raise DivergedError("Expected finite gradients of the model, but got some that are not. Skip this model.")
        for name, weight in wanted.items():
            place = self._index[id(weight)]
            before = self._importances.get(place, torch.zeros_like(weight))
            self._importances[place] = self._updated(before, squares[name])
            self._anchors[place] = weight.detach().clone()

    def _updated(self, before: Tensor, squares: Tensor) -> Tensor:
        new = (1 - self.options.share) * before + self.options.share * squares
        norm = float(new.norm())
        if 0 < self.options.clip < norm:
            new = new * (self.options.clip / norm)
        return new * self.alpha if self.options.compounding else new

    def penalty(self) -> float:
        """The penalty at the present weights."""
        return float(self._penalty().detach()) if self._importances else 0.0

    def reset(self) -> None:
        """Drop every importance, and with it the anchors."""
        self._anchors, self._importances = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """Epoch, anchors and importances."""
        return {"epoch": self._epoch, "anchors": dict(self._anchors), "importances": dict(self._importances)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore epoch, anchors and importances.

        Args:
            state: From `state_dict`.
        """
        self._epoch = state["epoch"]
        self._anchors, self._importances = (
            {place: value.to(self.shared_parameters[place]).clone() for place, value in state[name].items()}
            for name in ("anchors", "importances")
        )
