"""Weight plasticity under a tolerance: earlier models may lose so many nats, as measured; the strength α is found."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from forgetless.errors import InputError
from forgetless.plasticity import AccumulationRule, WeightPlasticity
from forgetless.protection.base import Decisions, Evidence, Protection
from forgetless.protection.wpl import WPL

Recall = Callable[[Decisions], tuple[nn.Module, Evidence]]
"""Decisions of an earlier model → the model and what may be asked about it."""

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

    Args:
        shared_parameters: The weights that several models use.
        tolerance: What each measured model may lose after its own training, in nats, above 0.
        damping: Added to the importance, as a share of its mean.
        rule: How importance accumulates over models; see `forgetless.WeightPlasticity`.
        decay: Of the rules `ema` and `merge`.
        num_measured: How many models are measured, at least 1: the newest. Each costs a forward pass per measurement.
        recall: Makes an earlier model and its evidence from its decisions; needed by `load_state_dict` only, because a
            state has no functions in it.

    Attributes:
        alpha: The tolerance, which is what the configuration of an experiment gives in place of a strength.

    Raises:
        InputError: If `num_measured` is below 1.
        ValueError: If `tolerance` is not finite and above 0.
    """

    strength: ClassVar[str | None] = "tolerance"
    symbol: ClassVar[str] = "tolerance"
    decays: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ("damping", "rule", "decay", "num_measured", "recall")

    def __init__(
        self,
        shared_parameters: Iterable[Tensor],
        tolerance: float = 0.01,
        damping: float = 0.0,
        *,
        rule: AccumulationRule = "sum",
        decay: float = 0.9,
        num_measured: int = 2,
        recall: Recall | None = None,
    ) -> None:
        if num_measured < 1:
            raise InputError(f"Expected num_measured to be at least 1, but got {num_measured}.")
        shared_parameters = list(shared_parameters)
        self.plasticity = WeightPlasticity(
            shared_parameters, tolerance=tolerance, damping=damping, rule=rule, decay=decay
        )
        Protection.__init__(self, shared_parameters, tolerance)  # WPL's own makes a plasticity of given α
        self.num_measured = num_measured
        self._recall = recall
        self._measured: list[Measured] = []

    @property
    def alpha(self) -> float:
        """The tolerance; may be set at any time."""
        assert self.plasticity.tolerance is not None
        return self.plasticity.tolerance

    @alpha.setter
    def alpha(self, value: float) -> None:
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
            if increase <= self.alpha:
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
        self._measured = others[-self.num_measured :]

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
        if state["measured"] and self._recall is None:
            raise InputError(
                f"Expected a way to recall {len(state['measured'])} measured models, but got none. Pass recall=."
            )
        super().load_state_dict(state["plasticity"])
        self._measured = [
            Measured(tuple(decisions), self._recalled(tuple(decisions)), first)
            for decisions, first in state["measured"]
        ]

    def _recalled(self, decisions: Decisions) -> Callable[[], float]:
        assert self._recall is not None
        return _held_out_loss(*self._recall(decisions))


def _held_out_loss(model: nn.Module, evidence: Evidence) -> Callable[[], float]:
    """The mean loss of a model on its first held-out batches, whenever it is called; training goes on as if it had not.

    Only what it needs of the evidence is kept.
    """
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
