"""What keeps a budget while a model is trained, and makes it hold at the end."""

import math
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import ASGD, LBFGS, SGD, Optimizer

from forgetless.budget.multiplier import Multiplier
from forgetless.budget.past import Anchors, OldBatches, OldInputs, OwnTexts, Past, as_batches, cross_entropies, trained
from forgetless.budget.path import Increase, share_within
from forgetless.budget.terms import Budget
from forgetless.errors import InputError
from forgetless.importance import LossFunction, diagonal_fisher, evaluated, own_texts, sample_text, unwrapped
from forgetless.plasticity import WeightPlasticity
from forgetless.plasticity.attaching import innermost
from forgetless.sharding import is_sharded

# The added gradient is at most so many times as long as that of the loss: a λ that is too large for the learning rate
# would otherwise throw the weights about, which raises λ further. The steps of SGD grow with it, and bear less.
_LONGEST, _LONGEST_OF_SGD = 2.0, 1.5
# Windows of fewer texts count as texts of their own: of so few, none could be spared for measuring.
_FEW_TEXTS = 16
# Measured after these steps, too.
_FIRST_STEPS = frozenset({4, 8, 12})
# One measurement takes one of so many parts of what there is for measuring.
_PARTS = 4
# Under `plasticity`, weights are drawn back and the loss is measured again, so many times.
_MOST_TRIES = 8
# Weights that an unimportant unit of the old model has are held a little, too.
_DAMPING = 1e-3

_OPEN: weakref.WeakKeyDictionary[nn.Module, "weakref.ref[Keeper]"] = weakref.WeakKeyDictionary()
"""Models with a budget that was not finished."""


@dataclass(frozen=True)
class BudgetReport:
    """What a training under a budget ended with.

    Attributes:
        nats: The budget.
        increase: Of the old loss per target, as measured, in nats.
        error: Standard error of it over the examples for measuring.
        upper: The end of its one-sided 95 % interval: at most the budget, or `finish` has warned.
        share: t of the way θ̂ + t (θ − θ̂) that was kept; 1 where training ended within the budget.
        increase_before: The increase where training ended.
        old_loss: Where training began, in nats per target.
        multiplier: λ of the last step, or α under `plasticity`.
        steps: How many were followed.
    """

    nats: float
    increase: float
    error: float
    upper: float
    share: float
    increase_before: float
    old_loss: float
    multiplier: float
    steps: int

    @property
    def used(self) -> float:
        """The share of the budget that the measured increase takes."""
        return self.increase / self.nats

    def __str__(self) -> str:
        return (
            f"old loss +{self.increase:.4f} ± {self.error:.4f} nats per target of {self.nats:g} allowed, "
            f"{self.share:.0%} of the way kept after {self.steps} steps"
        )


class Keeper:
    """Keeps a budget: made by `Budget.attach`, ended by `finish`.

    Args:
        budget: What to keep.
        model: See `Budget.attach`, as for the others.
        optimizer: See there.
        prompts: See there.
        context: See there.
        loss_fn: See there.
        state: From `state_dict` of a training that goes on: the old model and its texts are taken from it.

    Attributes:
        budget: What it keeps.
        plasticity: What holds the weights under `plasticity`; None otherwise.
        steps: Followed so far.

    Raises:
        InputError: See there.
    """

    def __init__(
        self,
        budget: Budget,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        prompts: int | Tensor | None = None,
        context: int | None = None,
        loss_fn: LossFunction | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._handles: list[Any] = []
        self.steps = 0
        self.budget, self._model = budget, unwrapped(model)
        several = optimizer if isinstance(optimizer, Sequence) else [optimizer]
        optimizers = [innermost(each) for each in several]
        self._weights = list(trained(self._model, optimizers))
        self._refuse(optimizers)
        # What is measured takes the old model's other weights from the present one.
        self._others = {id(p) for p in self._model.parameters()} - {id(weight) for weight in self._weights}
        self._anchors = Anchors(self._model, self._weights)
        if state is not None:
            self._anchors.load(state["anchors"])
        texts = None if state is None else state["texts"]
        # A state may have been read onto another device.
        self._texts = self._own_texts(prompts, context) if texts is None else texts.to(self._weights[0].device)
        self._past = self._what_was(loss_fn)
        self._multiplier = Multiplier(budget.nats)
        # Of several optimizers: all, those that took this step, whose each weight is, and what waits for their steps.
        self._all = {id(each) for each in optimizers}
        self._stepped: set[int] = set()
        self._owners: dict[int, int] = {}
        for each in optimizers:
            for group in each.param_groups:
                self._owners |= {id(weight): id(each) for weight in group["params"] if id(weight) not in self._owners}
        self._waiting: dict[int, tuple[float, list[tuple[Tensor, Tensor]]]] = {}
        self.plasticity = self._plasticity(optimizers, state) if budget.hold == "plasticity" else None
        if state is not None:
            self.steps = int(state["steps"])
            self._multiplier.load(state["multiplier"])
        self._follow(optimizers)
        _OPEN[self._model] = weakref.ref(self)

    # ---- the start ---------------------------------------------------------------------------------------------------

    def _refuse(self, optimizers: Sequence[Optimizer]) -> None:
        if not self._weights:
            raise InputError(
                "Expected an optimizer that trains weights of the model, but got none to hold. Pass the optimizer of "
                "this very model, and leave requires_grad on what it trains."
            )
        if any(map(is_sharded, self._weights)):
            raise InputError(
                "Expected weights that are whole in every process, but got shards. Use one process or DDP."
            )
        if any(isinstance(optimizer, LBFGS) for optimizer in optimizers):
            raise InputError("Expected an optimizer that takes a gradient as it is, but got LBFGS. Use another.")
        earlier = _OPEN.get(self._model)
        if earlier is not None and earlier() is not None:
            raise InputError(
                "Expected a model without a budget, but got one whose budget was not finished. Call finish() on it, or "
                "leave() to give it up."
            )

    def _own_texts(self, prompts: int | Tensor | None, context: int | None) -> Tensor | None:
        budget = self.budget
        if isinstance(budget.on, Tensor):
            texts = budget.on.to(self._weights[0].device)
        elif isinstance(budget.on, str):
            texts = self._written(prompts, context)
            if _in_several():
                dist.broadcast(texts, 0)
        else:
            return None
        if context is not None and texts.ndim == 2 and texts.shape[1] > context:
            texts = texts.unfold(1, context, context)  # (N, W, context)
            if len(texts) < _FEW_TEXTS:
                texts = texts.flatten(0, 1)
        return texts.contiguous()

    def _written(self, prompts: int | Tensor | None, context: int | None) -> Tensor:
        budget, device = self.budget, self._weights[0].device
        if prompts is None:
            if not hasattr(self._model, "config"):
                raise InputError(
                    f"Expected prompts to begin own texts with, but got none for {type(self._model).__name__}, which "
                    "has no config that says. Give attach(prompts=...), a token that a text begins with."
                )
            return own_texts(self._model, budget.samples, budget.sample_length, budget.batch_size, budget.seed, device)
        first = torch.as_tensor(prompts, device=device)
        first = first.reshape(1, 1) if first.ndim == 0 else first
        starts = first[torch.arange(budget.samples, device=device) % len(first)] if first.ndim == 2 else first
        generator = torch.Generator(device).manual_seed(budget.seed)
        num = budget.sample_length - starts.shape[-1]
        with evaluated(self._model):
            parts = [
                sample_text(self._model, s, num, context=context, generator=generator) for s in torch.split(starts, 64)
            ]
        return torch.cat(parts)

    def _what_was(self, loss_fn: LossFunction | None) -> Past:
        budget = self.budget
        past: Past
        if self._texts is not None:
            past = OwnTexts(self._texts, self._model, self._anchors, budget.batch_size, budget.seed)
        else:
            batches = as_batches(budget.on)
            if budget.by_targets:
                past = OldBatches(batches, loss_fn or cross_entropies, self._model, self._anchors, budget.seed)
            else:
                past = OldInputs(batches, self._model, self._anchors, budget.seed)
        if not math.isfinite(past.old_loss):
            raise InputError(
                f"Expected a finite old loss, but got {past.old_loss}. Check the model and what it is given."
            )
        if past.is_text and past.old_loss <= budget.nats:
            raise InputError(
                f"Expected a budget below the old loss of {past.old_loss:.3g} nats per target, but got "
                f"{budget.nats:g}. Choose what part of it may be lost."
            )
        return past

    def _plasticity(self, optimizers: Sequence[Optimizer], state: Mapping[str, Any] | None) -> WeightPlasticity:
        plasticity = WeightPlasticity(self._weights, tolerance=self.budget.nats, damping=_DAMPING)
        if state is not None:
            plasticity.load_state_dict(state["plasticity"])
        else:
            batches, loss_fn = self._past.batches(self._model, self._anchors)
            per: Literal["target", "example"] = "target" if isinstance(self._past, (OwnTexts, OldInputs)) else "example"
            with evaluated(self._model):
                importance = diagonal_fisher(self._model, batches, loss_fn, parameters=self._weights, per=per)
            plasticity.consolidate(self._model, importance)
        for optimizer in optimizers:
            plasticity.attach(optimizer)
        return plasticity

    def _follow(self, optimizers: Sequence[Optimizer]) -> None:
        if self.budget.hold == "replay":
            before = torch.compiler.disable(self._before)  # type: ignore[no-untyped-call]
            self._handles += [optimizer.register_step_pre_hook(before) for optimizer in optimizers]
        after = torch.compiler.disable(self._after)  # type: ignore[no-untyped-call]
        # After the projection's own hooks.
        self._handles += [optimizer.register_step_post_hook(after) for optimizer in optimizers]

    # ---- while the model trains --------------------------------------------------------------------------------------

    def _before(self, optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> Any:
        """Add the gradient of the old loss; where the step calls a closure, after that."""
        given = args[1] if len(args) > 1 else kwargs.get("closure")
        if given is None:
            self._add(optimizer)
            return None

        def closure() -> Any:
            with torch.enable_grad():
                loss = given()
            self._add(optimizer)
            return loss

        return (args[0], closure, *args[2:]), {name: v for name, v in kwargs.items() if name != "closure"}

    def _add(self, optimizer: Optimizer) -> None:
        waiting = self._waiting.pop(id(optimizer), None)
        weights = [weight for weight in self._weights if weight.grad is not None]
        found_inf = getattr(optimizer, "found_inf", None)
        if not weights or (isinstance(found_inf, Tensor) and float(found_inf) > 0):
            return  # a step that a gradient scaler skips
        # Of an optimizer that unscales gradients in its step.
        scale = getattr(optimizer, "grad_scale", None)
        scale = float(scale) if isinstance(scale, Tensor) else 1.0
        if waiting is None:  # no other optimizer stepped before it
            self._look_back(optimizer, weights, scale)
            waiting = self._waiting.pop(id(optimizer), None)
        if waiting is not None:
            value, pairs = waiting
            present, gradients = [], []
            for weight, gradient in pairs:
                if weight.grad is not None:
                    present.append(weight.grad)
                    gradients.append(gradient)
            if present:
                torch._foreach_add_(present, gradients, alpha=value * scale)

    def _look_back(self, optimizer: Optimizer, weights: Sequence[Tensor], scale: float) -> None:
        """Find the gradient of the old loss for all optimizers: each gets its part right before its own step.

        Until then a gradient may be made anew, or unscaled.
        """
        increase, gradients = self._gradients(weights)
        present = [weight.grad for weight in weights if weight.grad is not None]
        most = _LONGEST_OF_SGD if isinstance(optimizer, (SGD, ASGD)) else _LONGEST
        longest = most * _norm(present) / scale / max(_norm(gradients), 1e-30)
        self._waiting = {}
        if not (math.isfinite(increase) and math.isfinite(longest)):
            return
        self._multiplier.value = min(self._multiplier.value, longest)
        for weight, gradient in zip(weights, gradients, strict=True):
            parts = self._waiting.setdefault(self._owners[id(weight)], (self._multiplier.value, []))
            parts[1].append((weight, gradient))
        self._multiplier.follow(increase)

    def _gradients(self, weights: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        """The increase on a batch of old examples and its gradients, the mean over processes."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if _in_several() else (0, 1)
        with torch.enable_grad(), evaluated(self._model):
            increase = self._past.increase_on(self._model, self._anchors, self.steps * world + rank)
            # Not backward(): nothing of it reaches the hooks of DistributedDataParallel, or .grad.
            found = torch.autograd.grad(increase, weights, allow_unused=True)
        gradients = [
            torch.zeros_like(weight) if gradient is None else gradient
            for weight, gradient in zip(weights, found, strict=True)
        ]
        value = increase.detach().double().reshape(1)
        if world > 1:
            for tensor in (value, *gradients):
                dist.all_reduce(tensor)
                tensor /= world
        return float(value), gradients

    def _expect_same_weights(self, optimizer: Optimizer) -> None:
        moved = (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
        if self._others and any(id(p) in self._others for p in moved):
            raise InputError(
                "Expected to train the weights that were trained at the start, but got more. Unfreeze weights and add "
                "parameter groups before the budget is attached, or finish() it and attach another."
            )

    def _after(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        self._expect_same_weights(optimizer)
        is_new = id(optimizer) in self._stepped  # the others did not step in between
        self._stepped.add(id(optimizer))
        if not (is_new or self._stepped == self._all):
            return
        self._stepped = {id(optimizer)} if is_new and len(self._all) > 1 else set()
        self.steps += 1
        if not (self.steps in _FIRST_STEPS or self.steps % self.budget.measure_every == 0):
            return
        if self.plasticity is not None:
            for _ in range(_MOST_TRIES):
                found = self.measured().mean
                self.plasticity.calibrate(found, optimizer)
                if found <= self.budget.nats:
                    return
        elif self.budget.hold == "replay":
            self._multiplier.calibrate(self.measured(self.steps).mean)

    @torch.no_grad()
    def measured(self, turn: int | None = None) -> Increase:
        """The increase of the old loss now, with its standard error, on examples that nothing else uses.

        Args:
            turn: Of four parts of them that one; None: all.
        """
        parts = min(_PARTS, self._past.num_held)
        part = slice(None) if turn is None else slice(turn // self.budget.measure_every % parts, None, parts)
        found = self._past.increase(self._model, self._anchors, part)
        if _in_several():
            numbers = torch.tensor(found, dtype=torch.float64, device=self._weights[0].device)
            dist.broadcast(numbers, 0)
            found = Increase(*numbers.tolist())
        return found

    @property
    def multiplier(self) -> float:
        """λ, or α under `plasticity`."""
        return self._multiplier.value if self.plasticity is None else self.plasticity.alpha

    # ---- the end -----------------------------------------------------------------------------------------------------

    def finish(self) -> BudgetReport:
        """Make the budget hold: go back along the path to where the model started, as far as that needs.

        Floating-point buffers, such as BatchNorm's statistics, go along.

        Returns:
            The measured increase, and how much of the way was kept.

        Raises:
            InputError: If it was finished already.

        Warns:
            UserWarning: If nothing of the training could be kept, or the budget is exceeded with the old weights, too.
        """
        if not self._handles:
            raise InputError("Expected a budget that is not finished, but got one that is. Attach it anew.")
        multiplier = self.multiplier
        self.leave()
        moved = self._anchors.moved(self._model)
        ends = {name: tensor.detach().clone() for name, tensor in moved.items()}
        before = self.measured()

        def at(share: float) -> Increase:
            if share == 1:
                return before
            self._anchors.towards(self._model, ends, share)
            return self.measured()

        share, found = share_within(at, self.budget.nats)
        self._anchors.towards(self._model, ends, share)
        if share == 0 and not found.upper <= self.budget.nats:
            warnings.warn(
                f"The budget of {self.budget.nats:g} nats is not held: with the old weights back the old loss is still "
                f"{found.mean:.4g} above what it was. Something else of the model was changed, such as weights that "
                "were frozen when the budget was attached. Attach it after unfreezing, with an optimizer of them all.",
                stacklevel=2,
            )
        elif share == 0:
            warnings.warn(
                f"The budget of {self.budget.nats:g} nats could be held only by giving the old weights back: the old "
                f"loss rose by {before.mean:.4g} where training ended. Lower the learning rate.",
                stacklevel=2,
            )
        return BudgetReport(
            nats=self.budget.nats,
            increase=found.mean,
            error=found.error,
            upper=found.upper,
            share=share,
            increase_before=before.mean,
            old_loss=self._past.old_loss,
            multiplier=multiplier,
            steps=self.steps,
        )

    def leave(self) -> None:
        """Follow no step any more, and leave the weights where they are; the budget does not hold then."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self.plasticity is not None:
            self.plasticity.detach()
        _OPEN.pop(self._model, None)

    def __del__(self) -> None:
        if getattr(self, "_handles", None) and self.steps:
            warnings.warn(
                "A model was trained under a budget, but finish() was not called: the budget need not hold.",
                stacklevel=2,
            )

    # ---- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on with, but the weights: pass it to `Budget.attach` as `state`."""
        return {
            "anchors": dict(self._anchors.tensors),
            "texts": self._texts,
            "multiplier": self._multiplier.state(),
            "steps": self.steps,
            "plasticity": None if self.plasticity is None else self.plasticity.state_dict(),
        }


def _in_several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _norm(tensors: Sequence[Tensor]) -> float:
    norms = torch._foreach_norm(list(tensors))
    return float(torch.stack([n.float().to(norms[0].device) for n in norms]).norm())
