"""Weight plasticity under a tolerance: earlier models may lose so many nats, as measured; the strength α is found."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from forgetless.configuration import fitting
from forgetless.errors import InputError
from forgetless.protection.base import PROTECTIONS, Decisions, Evidence, ProtectionOptions
from forgetless.protection.wpl import WPL, WPLOptions

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

# What earlier models lost is measured after these steps of a model's training, after every tenth, and after the last.
_FIRST_STEPS = (1, 2, 4, 8)
_EVERY = 10
# Batches are taken until they have so many targets, or all of them.
_MOST_TARGETS = 1000
# Where too much is lost, the weights are drawn back and the loss is measured again, so many times.
_MOST_TRIES = 8


class Measured(NamedTuple):
    """An earlier model: what tells it from others, its held-out loss at the present weights, and that at its anchor."""

    decisions: Decisions
    loss: Callable[[], float]
    first: float


@dataclass(frozen=True, kw_only=True)
class ToleranceOptions(WPLOptions):
    """Options of weight plasticity under a tolerance.

    Attributes:
        strength: The tolerance: what each measured model may lose after its own training, in nats per prediction,
            above 0. α is found.
        num_measured: How many models are measured: the newest, or all if 0. Each costs a forward pass per measurement.
    """

    num_measured: int = fitting()

    fits: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"strength": 0.01, "num_measured": 2},
        "two-model": {"num_measured": 0},
        "search on text": {"strength": 0.01},
        "search on images": {"strength": 0.01},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(0, "num_measured")

    def check_strength(self) -> None:
        """Refuse a tolerance that is not above 0, or too small to differ from it in float32."""
        if self.strength is None:
            return
        from forgetless.plasticity import LEAST_TOLERANCE

        advice = "Where nothing may be lost, freeze."
        if not (math.isfinite(self.strength) and self.strength > 0):
            raise InputError(f"Expected a finite tolerance above 0, but got {self.strength}. {advice}")
        if self.strength < LEAST_TOLERANCE:
            raise InputError(
                f"Expected a tolerance of at least {LEAST_TOLERANCE:g}, but got {self.strength}, which float32 cannot "
                f"tell from 0. {advice}"
            )


@PROTECTIONS.register
class ToleranceWPL(WPL):
    """Draws shared weights back as `wpl` does, with the least α under which earlier models lose no more than allowed.

        minimise L₂(θ₂, θ_s)   subject to   L_j(θ_s) − L_j(θ̂_s) ≤ tolerance

    L_j is the loss of an earlier model j on held-out examples, θ̂_s where the shared weights were when it was
    consolidated. Each step of the optimizer is followed by a projection onto ½ Σ F_i (θ_i − θ̂_i)² ≤ budget, whose
    multiplier is α (`forgetless.plasticity`). The budget is the tolerance at first; the quadratic form is a coarse
    prediction of what is lost, therefore L_j is measured after the steps 1, 2, 4, 8, every tenth and the last, and the
    budget adapted (`forgetless.WeightPlasticity.calibrate`). Where a model lost too much, the weights are drawn back
    and L_j is measured again, at once, up to 8 times; so much may the tolerance be passed between two measurements.

    Measured are the newest models, on the first 1,000 held-out examples or words (whole batches); of several the one
    that lost most counts. A model whose loss was not finite is not measured. Without damping, weights of importance 0
    are held at no α: what they lose earlier models cannot be prevented, and everything else is then held firmly.
    """

    name: ClassVar[str] = "wpl-tolerance"
    label: ClassVar[str] = "limited weight plasticity"
    in_sentence: ClassVar[str] = ""
    colour: ClassVar[str | None] = "#7B3294"
    Options: ClassVar[type[ProtectionOptions]] = ToleranceOptions
    uses_examples: ClassVar[bool] = True
    symbol: ClassVar[str] = "tolerance"
    unit: ClassVar[str] = "nats"
    decays: ClassVar[bool] = False
    options: ToleranceOptions

    def _set_up(self) -> None:
        super()._set_up()
        self._measured: list[Measured] = []

    def _settings(self) -> dict[str, Any]:
        settings = super()._settings()
        return {"tolerance": settings.pop("alpha"), **settings}

    @property
    def strength(self) -> float:
        """The tolerance; may be set at any time."""
        assert self.plasticity.tolerance is not None
        return self.plasticity.tolerance

    @strength.setter
    def strength(self, value: float) -> None:
        self.plasticity.tolerance = value

    @property
    def measured(self) -> list[Decisions]:
        """The decisions of the measured models, from the oldest to the newest."""
        return [model.decisions for model in self._measured]

    @contextlib.contextmanager
    def during(self, optimizer: Optimizer) -> Iterator[None]:
        """A context in which steps are followed by the projection, and some of them by a measurement."""
        step = measured_at = 0

        def follow(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
            nonlocal step, measured_at
            step += 1
            if step in _FIRST_STEPS or step % _EVERY == 0:
                measured_at = step
                self._calibrate(optimizer)

        with super().during(optimizer):
            handle = optimizer.register_step_post_hook(follow)  # after the projection's
            try:
                yield
                if measured_at < step:
                    self._calibrate(optimizer)
            finally:
                handle.remove()

    def _calibrate(self, optimizer: Optimizer) -> None:
        """Measure, and draw the weights back until every measured model is within the tolerance."""
        for _ in range(_MOST_TRIES if self._measured else 0):
            increase = self.increase()
            self.plasticity.calibrate(increase, optimizer)
            if increase <= self.strength:
                return

    def increase(self) -> float:
        """How much the loss of a measured model has grown since its own training, in nats; the most of all.

        NaN if a loss is not finite; 0 where no model is measured.
        """
        grown = [model.loss() - model.first for model in self._measured]
        return max(grown, default=0.0) if all(map(math.isfinite, grown)) else math.nan

    def consolidate(self, model: nn.Module, evidence: Evidence) -> None:
        """As under `wpl`; the loss on held-out examples, with the weights as they now are, is what it is kept at."""
        super().consolidate(model, evidence)
        decisions, loss = tuple(evidence.decisions), _held_out_loss(model, evidence)
        first = loss()
        others = [other for other in self._measured if other.decisions != decisions or not decisions]
        if math.isfinite(first):
            others.append(Measured(decisions, loss, first))
        self._measured = others[-self.options.num_measured :]

    def penalty(self) -> float:
        """α/2 Σ F_i (θ_i − θ̂_i)² at the present weights, with the multiplier that the last step found as α."""
        return self.plasticity.alpha * self.plasticity.expected_increase()

    def reset(self) -> None:
        """Forget every anchor, importance and measured model."""
        super().reset()
        self._measured = []

    def state_dict(self) -> dict[str, Any]:
        """Anchors, importances, multiplier and budget; decisions and first losses of the measured models."""
        measured = [[list(model.decisions), model.first] for model in self._measured]
        return {"plasticity": super().state_dict(), "measured": measured}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: From `state_dict`.

        Raises:
            InputError: If there are measured models and no `recall` was given to the constructor.
        """
        recall = self._expect_recall(len(state["measured"])) if state["measured"] else None
        super().load_state_dict(state["plasticity"])
        self._measured = []
        for decisions, first in state["measured"]:
            assert recall is not None
            loss = _held_out_loss(*recall(tuple(decisions)))
            self._measured.append(Measured(tuple(decisions), loss, first))


def _held_out_loss(model: nn.Module, evidence: Evidence) -> Callable[[], float]:
    """The mean loss of a model on its first held-out batches, whenever it is called; training goes on as if it had not.

    Only what it needs of the evidence is kept.
    """
    import torch

    batches, loss = evidence.batches, evidence.loss

    @torch.no_grad()
    def measure() -> float:
        total, num_targets = 0.0, 0
        modes = {module: module.training for module in model.modules()}
        try:
            found = batches()
            model.eval()
            for inputs, targets in found:
                total += float(loss(model(inputs), targets)) * targets.numel()
                num_targets += targets.numel()
                if num_targets >= _MOST_TARGETS:
                    break
        finally:
            # By way of train(), in which a supernet drops the batch statistics that this left it.
            model.train(modes[model])
            for module, mode in modes.items():
                module.training = mode
        return total / max(1, num_targets)

    return measure
