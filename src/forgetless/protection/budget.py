"""A budget of the old loss: the newest earlier model may lose so many nats, as measured; how it is held is found."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from forgetless.configuration import fitting
from forgetless.errors import InputError
from forgetless.protection.base import PROTECTIONS, Decisions, Evidence, Protection, ProtectionOptions, StrengthOptions

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class BudgetOptions(StrengthOptions):
    """Options of a budget.

    Attributes:
        strength: What the newest earlier model may lose, in nats per prediction, above 0.
        hold: What holds it while the next model trains: replay of its examples, plasticity of its weights, or nothing
            but the way back at the end (interpolation).
        by_targets: Whether the loss of the examples' targets is measured and held; otherwise the relative entropy to
            the earlier model on their inputs, for models of class logits.
        measure_every: Steps from one measurement to the next.
    """

    hold: Literal["replay", "plasticity", "interpolation"] = "replay"
    by_targets: bool = fitting()
    measure_every: int = 20

    fits: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"strength": 0.05, "by_targets": True},
        "fine-tune": {"by_targets": False},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(1, "measure_every")

    def check_strength(self) -> None:
        """Refuse a budget that is not finite and above 0."""
        if self.strength is not None and not (math.isfinite(self.strength) and self.strength > 0):
            raise InputError(
                f"Expected a finite budget above 0, but got {self.strength}. Where nothing may be lost, freeze."
            )


@PROTECTIONS.register
class BudgetProtection(Protection):
    """Trains the next model as well as it can be while the newest earlier one loses at most a budget.

        minimise L(θ)   subject to   L_old(θ) − L_old(θ̂) ≤ budget

    L_old is the newest earlier model's loss on examples that its evidence has, θ̂ where the training begins. While the
    next model trains, λ times the increase on some of these examples is added to its gradient, with λ found; at the
    end, the weights go back along the straight path to θ̂ until the increase on the others is within the budget, with
    the upper end of its 95 % interval: see `forgetless.Budget`, which does the same in anybody's loop.

    Earlier models than the newest are not held. Where the budget could be kept only by going back all the way, there is
    a warning.
    """

    name: ClassVar[str] = "budget"
    label: ClassVar[str] = "budget"
    in_sentence: ClassVar[str] = "a budget"
    colour: ClassVar[str | None] = "#01665E"
    Options: ClassVar[type[ProtectionOptions]] = BudgetOptions
    symbol: ClassVar[str] = "budget"
    unit: ClassVar[str] = "nats"
    decays: ClassVar[bool] = False
    uses_examples: ClassVar[bool] = True
    works_in_ranks: ClassVar[bool] = False  # a budget takes other old examples in each process
    options: BudgetOptions

    def _set_up(self) -> None:
        self._newest: tuple[Decisions, nn.Module, Evidence] | None = None

    @classmethod
    def passes(cls, options: Any) -> float:
        """A pass on old examples, and of the earlier model where its outputs are needed."""
        return {"replay": 2.0 if options.by_targets else 7 / 3}.get(options.hold, 1.0)

    @classmethod
    def held_copies(cls, options: Any, num_outputs: float) -> float:  # noqa: ARG003
        """Where the training began; at its end, where that was; importance and anchor of plasticity."""
        return 4.0 if options.hold == "plasticity" else 2.0

    @contextlib.contextmanager
    def during(self, optimizer: Optimizer) -> Iterator[None]:
        """A context in which the budget is held, and at whose end it is kept."""
        from forgetless.budget import Budget

        if self._newest is None:
            yield
            return
        _, model, evidence = self._newest
        budget = Budget(
            self.strength,
            on=list(evidence.batches()),
            hold=self.options.hold,
            by_targets=self.options.by_targets,
            measure_every=self.options.measure_every,
        )
        keep = budget.attach(model, optimizer, loss_fn=evidence.loss)
        try:
            yield
        except BaseException:
            keep.leave()
            raise
        keep.finish()

    def consolidate(self, model: nn.Module, evidence: Evidence) -> None:
        """Keep this model from now on, in place of the one before."""
        self._newest = (tuple(evidence.decisions), model, evidence)

    def reset(self) -> None:
        """Keep no model."""
        self._newest = None

    def state_dict(self) -> dict[str, Any]:
        """The decisions of the model that is kept."""
        return {"newest": None if self._newest is None else list(self._newest[0])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: From `state_dict`.

        Raises:
            InputError: If there is an earlier model and no `recall` was given to the constructor.
        """
        if state["newest"] is None:
            self._newest = None
            return
        decisions = tuple(state["newest"])
        self._newest = (decisions, *self._expect_recall(1)(decisions))
