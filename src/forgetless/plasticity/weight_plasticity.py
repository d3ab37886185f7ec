"""The weight plasticity loss: what model A needs is kept while model B trains on shared weights.

    L_WPL(θ₂, θ_s) = L₂(θ₂, θ_s) + α/2 Σ_i F_i (θ_s,i − θ̂_s,i)²

Source: Benyahia et al., Overcoming Multi-Model Forgetting, ICML 2019, arXiv:1902.08232, eq. 8. The anchor θ̂ is where
A left the shared weights, the importance F is A's Fisher information there. `quadratic_penalty` is the added term,
`proximal_step` its implicit form, which is finite for every α; `WeightPlasticity` holds anchor and importance and
applies either in anybody's loop, at a given α or at the one that a tolerance calls for.
"""

import math
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.utils.hooks import RemovableHandle

from forgetless.errors import DivergedError, expect_one_of
from forgetless.importance import unwrapped
from forgetless.plasticity.budget import LEAST_TOLERANCE, USED_SHARE, expected_increase, tolerance_step
from forgetless.plasticity.metric import TINY, scaled_metric
from forgetless.plasticity.packing import Packed, Packing

AccumulationRule = Literal["replace", "sum", "joint", "ema", "merge"]

# Keeps lr·α and its inverse finite in float32 for every α.
_LARGEST_SCALE = 1e38
# A weight of this importance is held as firmly as can be; sums of such stay finite.
_LARGEST_IMPORTANCE = 1e30
_DEFAULT_ALPHA = 1e5
# Between two measurements of what earlier models lost, the quadratic form may shrink to or grow by so much.
_LEAST_CHANGE, _MOST_CHANGE = 0.25, 2.0
# It may not shrink below this share of the tolerance, from which it can grow again within some 20 measurements.
_SMALLEST_BUDGET = 1e-6


def quadratic_penalty(
    parameters: Sequence[Tensor], anchors: Sequence[Tensor], importances: Sequence[Tensor], alpha: float
) -> Tensor:
    """The penalty α/2 Σ_i F_i (θ_i − θ̂_i)², differentiable in the parameters.

    Its gradient is α F_i (θ_i − θ̂_i). Gradient descent on it is stable only while lr·α·F_i < 2 for every i; the
    proximal step has no such limit.

    Source: arXiv:1902.08232, eq. 8.

    Args:
        parameters: The shared weights θ.
        anchors: θ̂, in the same order and shapes.
        importances: F ≥ 0, in the same order and shapes.
        alpha: Strength α ≥ 0.

    Returns:
        A scalar in the unit of the loss; 0 for no parameters.

    Raises:
        ValueError: If `alpha` is negative or not finite.

    >>> theta = torch.tensor([1.0, 3.0], requires_grad=True)
    >>> penalty = quadratic_penalty([theta], [torch.zeros(2)], [torch.tensor([2.0, 0.0])], alpha=10.0)
    >>> penalty.item(), torch.autograd.grad(penalty, theta)[0].tolist()
    (10.0, [20.0, 0.0])
    """
    _check_alpha(alpha)
    total = parameters[0].new_zeros(()) if parameters else torch.zeros(())
    for theta, anchor, importance in zip(parameters, anchors, importances, strict=True):
        total = total + (importance * (theta - anchor).square()).sum()
    return min(alpha / 2, torch.finfo(total.dtype).max) * total  # inf · 0 is NaN


@torch.no_grad()
def proximal_step(
    parameters: Sequence[Tensor],
    anchors: Sequence[Tensor],
    importances: Sequence[Tensor],
    *,
    alpha: float,
    learning_rate: float,
    metric: float | Sequence[Tensor] = 1.0,
) -> None:
    """Draw the parameters towards their anchors, in place, by the proximal operator of the quadratic penalty.

        θ_i ← (θ_i + s_i θ̂_i) / (1 + s_i),    s_i = lr · α · F_i / d_i

    It minimises α/2 Σ F_i (θ'_i − θ̂_i)² + 1/(2 lr) Σ d_i (θ'_i − θ_i)², is finite for every α in [0, ∞), and leaves
    the parameters bit for bit where α or F is 0.

    Args:
        parameters: The shared weights θ after the optimizer's own step. Changed in place.
        anchors: θ̂, in the same order, shapes, types and devices.
        importances: F ≥ 0, in the same order and shapes.
        alpha: Strength α ≥ 0.
        learning_rate: lr of the step just taken.
        metric: The optimizer's preconditioner d > 0: a number, or one tensor per parameter.

    Raises:
        ValueError: If `alpha` is negative or not finite.

    >>> theta = torch.tensor([1.0, 1.0])
    >>> proximal_step([theta], [torch.zeros(2)], [torch.tensor([1.0, 0.0])], alpha=3.0, learning_rate=1.0)
    >>> theta
    tensor([0.2500, 1.0000])
    """
    _check_alpha(alpha)
    if alpha == 0 or learning_rate == 0 or not parameters:
        return
    scale = _inverse(alpha * learning_rate)
    if isinstance(metric, float | int):
        pulls = _pulls(importances, metric * scale + TINY, parameters)
    else:
        scaled = list(torch._foreach_mul([values.to(_wide(values.dtype)) for values in metric], scale))
        torch._foreach_add_(scaled, TINY)
        pulls = _pulls(importances, scaled, parameters)
    torch._foreach_lerp_(list(parameters), list(anchors), pulls)


def _check_alpha(alpha: float) -> None:
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"Expected alpha to be finite and at least 0, but got {alpha}. 0 switches the protection off.")


def _checked_tolerance(value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(
            f"Expected tolerance to be finite and above 0, but got {value}. "
            "It is what earlier models may lose; freeze the weights where that is nothing."
        )
    if value < LEAST_TOLERANCE:
        raise ValueError(
            f"Expected tolerance to be at least {LEAST_TOLERANCE:g}, but got {value}. float32 cannot tell less from 0. "
            "Freeze the weights instead."
        )
    return float(value)


def _inverse(strength: float) -> float:
    """1/(lr·α), kept finite."""
    return 1 / min(max(strength, 1 / _LARGEST_SCALE), _LARGEST_SCALE)


def _pulls(
    importances: Sequence[Tensor], scaled_metric: float | list[Tensor], parameters: Sequence[Tensor]
) -> list[Tensor]:
    """s/(1 + s) = F / (F + d/(lr·α)), in the parameters' types.

    `scaled_metric` is d/(lr·α) + `TINY`; tensors are overwritten. Nothing overflows: F is finite, and where d/(lr·α)
    is not there is no pull.
    """
    importances = [importance.to(_wide(importance.dtype)) for importance in importances]
    if isinstance(scaled_metric, float):
        denominators = list(torch._foreach_add(importances, scaled_metric))
    else:
        denominators = scaled_metric
        torch._foreach_add_(denominators, importances)
    pulls = torch._foreach_div(importances, denominators)
    return [pull.to(parameter.dtype) for pull, parameter in zip(pulls, parameters, strict=True)]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class WeightPlasticity:
    """Keeps what earlier models need of shared weights while other models train on them.

    Train model A as ever and `consolidate` it; then train B as ever, with the plasticity attached to B's optimizer
    (or with `penalty()` added to B's loss). Weights are matched by identity, so a shared tensor may have another name
    in each model. The weights themselves are never copied into a model; there is one anchor and one importance per
    shared weight, however many models there were.

    After each `consolidate`, for the weights that model used (θ_j its present values, F_j its importance):

    | rule | importance | anchor |
    |---|---|---|
    | `replace` | F ← F_j | θ̂ ← θ_j |
    | `sum` | F ← F + F_j | θ̂ ← θ_j |
    | `joint` | F' = F + F_j | θ̂ ← (F·θ̂ + F_j·θ_j) / F', and the weights stay |
    | `ema` | F ← decay·F + (1 − decay)·F_j, the first time F_j | θ̂ ← θ_j |
    | `merge` | F' = decay·F + F_j | θ̂ ← (decay·F·θ̂ + F_j·θ_j) / F', and the weights themselves move there |

    `joint` is one quadratic per model, Σ_j Σ_i F_j,i (θ_i − θ_j,i)², up to a constant, in the memory of one: elastic
    weight consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796).

    Source: arXiv:1902.08232; `merge` is the recursion of its two-model posterior, compare Matena and Raffel 2022
    (arXiv:2111.09832). α multiplies when the penalty is computed and is never stored into F.

    Args:
        shared_parameters: The shared weights: any iterable of parameters or of (name, parameter) pairs. Only their
            identity matters; a weight that is never consolidated is never held.
        alpha: Strength α ≥ 0. 10⁵ keeps a classifier of a few 100,000 weights within a tenth of a point, and is what is
            taken where neither it nor a tolerance is given.
        tolerance: In place of α: ½ Σ_i F_i (θ_i − θ̂_i)², over all held weights, stays at most this (to 1 in 10⁶). It is
            the increase of the earlier models' mean loss, in its unit, that the Fisher predicts from one `consolidate`
            to the next (of several models their sum under the rules `sum` and `joint`); α becomes the multiplier of
            this constraint, see `forgetless.plasticity`. The prediction is off by a factor of 3 to 100 where weights
            move together, and 1/T of the increase where an example has T targets (a chunk of text) and its loss is
            their mean: `calibrate` makes it what is measured.
        rule: How importance accumulates over models; see the table.
        decay: For `ema` and `merge`, how much of the old importance stays, in [0, 1].
        damping: Added to every importance of a model, as a share of their mean: F_i + damping · mean(F), at least 0.
            The curvature of the log joint holds the prior's precision, which the Fisher leaves out; without it,
            weights around a unit that is silent in A have F = 0, are free to move, and can wake it. 0 is the paper's
            penalty; 10⁻³ protects models that were stopped early.

    Raises:
        ValueError: If `alpha` or `damping` is negative or not finite, `tolerance` not above 0 and finite, both `alpha`
            and `tolerance` are given, `rule` is unknown or `decay` lies outside [0, 1].
        TypeError: If a shared parameter is not a tensor.

    >>> trunk = nn.Linear(2, 2)
    >>> a, b = nn.Sequential(trunk, nn.Linear(2, 3)), nn.Sequential(trunk, nn.Linear(2, 5))
    >>> optimizer = SGD(b.parameters(), lr=0.1)
    >>> plasticity = WeightPlasticity(trunk.parameters(), alpha=1e5).attach(optimizer)
    >>> plasticity.consolidate(a, {name: torch.ones_like(weight) for name, weight in a.named_parameters()})
    >>> before = trunk.weight.clone()
    >>> b(torch.ones(1, 2)).sum().backward()
    >>> optimizer.step()
    >>> torch.allclose(trunk.weight, before, atol=1e-3)
    True
    """

    def __init__(
        self,
        shared_parameters: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
        alpha: float | None = None,
        *,
        tolerance: float | None = None,
        rule: AccumulationRule = "sum",
        decay: float = 0.9,
        damping: float = 0.0,
    ) -> None:
        expect_one_of("rule", rule, get_args(AccumulationRule))
        if alpha is not None and tolerance is not None:
            raise ValueError(
                f"Expected alpha or tolerance, but got both ({alpha} and {tolerance}). "
                "Under a tolerance alpha is found, not chosen."
            )
        if not (math.isfinite(damping) and damping >= 0):
            raise ValueError(
                f"Expected damping to be finite and at least 0, but got {damping}. 0 is the paper's penalty."
            )
        if not 0 <= decay <= 1:
            raise ValueError(
                f"Expected decay in [0, 1], but got {decay}. It is the share of the old importance that stays."
            )
        self._tolerance = self._budget = None if tolerance is None else _checked_tolerance(tolerance)
        self._alpha = 0.0
        if tolerance is None:
            self.alpha = _DEFAULT_ALPHA if alpha is None else alpha
        self.rule: AccumulationRule = rule
        self.decay = decay
        self.damping = damping
        self._parameters = _unique_tensors(shared_parameters)
        self._index = {id(parameter): i for i, parameter in enumerate(self._parameters)}
        self._anchors: list[Tensor | None] = [None] * len(self._parameters)
        self._importances: list[Tensor | None] = [None] * len(self._parameters)
        self._attached: list[tuple[weakref.ref[Optimizer], RemovableHandle]] = []
        # Which weights an attached optimizer moved last, under a tolerance; gradients may be gone by then.
        self._moved: weakref.WeakKeyDictionary[Optimizer, frozenset[int]] = weakref.WeakKeyDictionary()
        # By who asks: the weights last asked for.
        self._blocks: dict[Any, _Block] = {}

    @property
    def alpha(self) -> float:
        """Strength α of the protection; may be set at any time, but under a tolerance, where it is the multiplier."""
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        _check_alpha(value)
        if self._tolerance is not None:
            raise ValueError(
                f"Expected no alpha under a tolerance, where it is the multiplier of the constraint, but got {value}. "
                "Set the tolerance."
            )
        self._alpha = float(value)

    @property
    def tolerance(self) -> float | None:
        """What earlier models may lose; None if α is given instead. May be set at any time if it is not None."""
        return self._tolerance

    @tolerance.setter
    def tolerance(self, value: float) -> None:
        if self._tolerance is None:
            raise ValueError(
                f"Expected no tolerance where alpha is given, but got {value}. "
                "Build another WeightPlasticity(tolerance=...)."
            )
        assert self._budget is not None
        value = _checked_tolerance(value)
        self._budget = min(self._budget * (value / self._tolerance), value)  # what calibrate found out stays
        self._tolerance = value

    @property
    def budget(self) -> float | None:
        """What ½ Σ F_i (θ_i − θ̂_i)² may be: the tolerance, or less after `calibrate`; None if α is given."""
        return self._budget

    @property
    def shared_parameters(self) -> tuple[Tensor, ...]:
        """The shared weights, in the order given."""
        return tuple(self._parameters)

    def anchor(self, parameter: Tensor) -> Tensor | None:
        """θ̂ of a shared weight; None before the first model that used it was consolidated."""
        return self._anchors[self._index[id(parameter)]]

    def importance(self, parameter: Tensor) -> Tensor | None:
        """F of a shared weight; None before the first model that used it was consolidated."""
        return self._importances[self._index[id(parameter)]]

    # ---- after a model ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def consolidate(self, model: nn.Module, importance: Mapping[str, Tensor]) -> None:
        """Remember where a trained model left the shared weights, and how much it needs each.

        Weights that the model does not hold, or that `importance` does not name, keep anchor and importance.

        Args:
            model: The model just trained.
            importance: F_j ≥ 0 by the parameter names of `model`, as `diagonal_fisher` returns it. Names of weights
                that are not shared are allowed and ignored.

        Raises:
            ValueError: If a name is not a parameter of `model`, a shape differs, a value is negative or not finite,
                a device differs, or `importance` names none of the shared weights. Nothing is changed then.
        """
        model = unwrapped(model)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        found: dict[int, Tensor] = {}
        for name, value in importance.items():
            if name not in parameters:
                raise ValueError(
                    f"Expected importance by the parameter names of the model, but got {name!r}. "
                    "Compute it from the same model that is consolidated."
                )
            i = self._index.get(id(parameters[name]))
            if i is not None:
                _check_importance(name, parameters[name], value)
                found[i] = value
        if self._parameters and not found:
            raise ValueError(
                "Expected importance of some of the shared parameters, but got it of none. "
                "Shared weights are matched by identity: pass the model itself, not a copy."
            )
        self._held(found)
        floor = self.damping * _mean_over_all(found.values()) if found else 0.0
        for i, value in found.items():
            self._fold(i, value.detach().to(_wide(self._parameters[i].dtype)) + floor)
        self._blocks.clear()

    def _fold(self, i: int, value: Tensor) -> None:
        """Take F_j of one weight, overwriting it, into anchor and importance."""
        parameter, old = self._parameters[i], self._importances[i]
        value.clamp_(max=_LARGEST_IMPORTANCE)
        anchor, rest = self._anchors[i], parameter
        if old is None or anchor is None or self.rule == "replace":
            self._importances[i] = value
        elif self.rule == "sum":
            self._importances[i] = value.add_(old)
        elif self.rule == "ema":
            self._importances[i] = value.lerp_(old, self.decay)
        else:
            kept = old if self.rule == "joint" else self.decay * old
            total = value + kept
            # Where neither model needs the weight, 0/0 is 0: it stays where the later one left it.
            share = kept / total.clamp_min(TINY)
            rest = parameter.detach().clone() if self.rule == "joint" else parameter
            rest.lerp_(anchor, share.to(parameter.dtype))
            self._importances[i] = total
        self._anchors[i] = rest.detach().clone()

    def reset(self) -> None:
        """Forget every anchor and importance; nothing is held until the next `consolidate`."""
        self._anchors = [None] * len(self._parameters)
        self._importances = [None] * len(self._parameters)
        self._blocks.clear()
        if self._tolerance is not None:
            self._alpha, self._budget = 0.0, self._tolerance

    # ---- while another model trains --------------------------------------------------------------------------

    def penalty(self) -> Tensor:
        """The penalty α/2 Σ F_i (θ_i − θ̂_i)² of the present weights: a differentiable scalar, 0 if nothing is held.

        For loops that add losses. Do not also `attach`: the protection would count twice.

        Raises:
            ValueError: If an anchor is on another device or of another type than its weight, or there is a tolerance,
                which only a step can keep.
        """
        if self._tolerance is not None:
            raise ValueError(
                "Expected a penalty of given alpha, but got a tolerance, whose alpha only steps can find. "
                "Attach to the optimizer, or give alpha."
            )
        held = self._held(range(len(self._parameters)))
        if not held:
            reference = self._parameters[0] if self._parameters else torch.zeros(())
            return reference.new_zeros(())
        return quadratic_penalty(*self._columns(held), self.alpha)

    def expected_increase(self) -> float:
        """½ Σ F_i (θ_i − θ̂_i)² of the present weights, without α: how much the Fisher expects earlier models to lose.

        Raises:
            ValueError: If an anchor is on another device or of another type than its weight.
        """
        held = self._held(range(len(self._parameters)))
        return expected_increase(*self._columns(held)) if held else 0.0

    @torch.no_grad()
    def calibrate(self, increase: float, optimizer: Optimizer | None = None) -> None:
        """Tell how much more the earlier models' loss is now than right after they were trained, as measured.

        The quadratic form takes a weight's part for independent of the others', and the earlier models for being at an
        optimum. Under a tolerance, `budget` is what it may be: where the measured increase is above the tolerance, the
        budget becomes the form's present value (if that is less) times tolerance/increase, at least 1/4; where it is
        below and the budget is used up, the budget grows by tolerance/increase, at most 2, up to the tolerance itself.
        Call it every 10 steps or so, and after the first few, with the loss on some hundred held-out examples. Several
        earlier models may be told of by the largest of their increases. Of several processes each is to be told the
        same number.

        Args:
            increase: In the unit of the tolerance; negative where the models got better.
            optimizer: An attached one. Where it was too much, the weights that its last step moved are drawn back now,
                into the new budget, and not only after its next step. Measure again then: it may still be too much.

        Raises:
            ValueError: If there is no tolerance, or the optimizer is not attached.
        """
        if self._tolerance is None or self._budget is None:
            raise ValueError("Expected a tolerance to calibrate, but got none. Give one in place of alpha.")
        if optimizer is not None and all(reference() is not optimizer for reference, _ in self._attached):
            raise ValueError("Expected an attached optimizer to calibrate with, but got one that is not. Attach it.")
        present = self.expected_increase()
        if not increase <= self._tolerance:  # also where it is not a number
            share = self._tolerance / increase if math.isfinite(increase) else 0.0
            least = _SMALLEST_BUDGET * self._tolerance
            used = min(present, self._budget) if math.isfinite(present) else self._budget
            self._budget = max(max(share, _LEAST_CHANGE) * used, least)
            if optimizer is not None and optimizer in self._moved:
                self._step_within(optimizer)
        elif present >= USED_SHARE * self._budget:
            share = self._tolerance / increase if increase > 0 else math.inf
            self._budget = min(self._budget * min(share, _MOST_CHANGE), self._tolerance)

    def attach(self, optimizer: Optimizer) -> Self:
        """Follow every step of an optimizer by a proximal step on the shared weights it moved.

        The proximal step is taken in the optimizer's own metric, s_i = lr · α · F_i / d_i, with d chosen such that a
        weight comes to rest where the gradient of the whole loss of eq. 8 vanishes, at the same α for each: see
        `forgetless.plasticity.scaled_metric`. Of an optimizer other than SGD, Adam and AdamW it is 1, with a warning.

        Under a tolerance there is one multiplier α for the weights of all groups. With several optimizers, each draws
        back the weights that it moved; those of the others keep their part of the budget, and the multiplier is handed
        on from one to the next.

        Learning rates are read from the parameter groups at each step, so groups and schedules are honoured. Weights
        without a gradient are left alone, as the optimizer leaves them. A loop that scales gradients by κ, as clipping
        does, scales those of the loss alone: α then counts as α/κ.

        Args:
            optimizer: Trains the next model. May be attached before or after `consolidate`.

        Returns:
            This object.

        Raises:
            ValueError: If the optimizer holds none of the shared weights, or is attached already.
        """
        if any(reference() is optimizer for reference, _ in self._attached):
            raise ValueError("Expected an optimizer that is not attached yet, but got one that is. Detach it first.")
        groups = optimizer.param_groups
        if self._parameters and not any(id(p) in self._index for group in groups for p in group["params"]):
            raise ValueError(
                "Expected an optimizer of some of the shared parameters, but got one that holds none. "
                "Attach to the optimizer that trains the shared weights."
            )
        if not isinstance(optimizer, SGD | Adam):
            warnings.warn(
                f"forgetless knows the metric of SGD, Adam and AdamW, not of {type(optimizer).__name__}: "
                "the proximal step uses the identity, so that alpha has another meaning.",
                stacklevel=2,
            )
        handle = optimizer.register_step_post_hook(self._after_step)
        self._attached = [pair for pair in self._attached if pair[0]() is not None]
        self._attached.append((weakref.ref(optimizer), handle))
        return self

    def detach(self, optimizer: Optimizer | None = None) -> None:
        """Stop following an optimizer, or all of them. Anchor and importance stay.

        Args:
            optimizer: The one to leave; all if None.
        """
        kept = []
        for reference, handle in self._attached:
            if optimizer is None or reference() is optimizer:
                handle.remove()
                if (left := reference()) is not None:
                    self._moved.pop(left, None)
            else:
                kept.append((reference, handle))
        self._attached = kept
        self._blocks.clear()

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        if self._tolerance is not None:
            moving = (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
            self._moved[optimizer] = frozenset(self._index[id(p)] for p in moving if id(p) in self._index)
            self._step_within(optimizer)
            return
        if self.alpha == 0:
            return
        for g, group in enumerate(optimizer.param_groups):
            moved = (self._index[id(p)] for p in group["params"] if id(p) in self._index and p.grad is not None)
            held = self._held(moved)
            learning_rate = float(group["lr"])
            if not held or learning_rate == 0:
                continue
            block = self._block((id(optimizer), g), held)
            scale = _inverse(self.alpha * learning_rate)
            metric = scaled_metric(optimizer, group, block.parameters, scale, block.space)
            weights = block.weights.load(block.parameters)
            torch._foreach_lerp_(weights, block.anchors, block.pulls(metric, weights))
            block.weights.store(block.parameters)

    def _step_within(self, optimizer: Optimizer) -> None:
        """Draw back what the optimizer moved, by one multiplier, until all held weights together are in the budget."""
        assert self._budget is not None
        last = self._moved[optimizer]
        blocks: list[_Block] = []
        weights: list[Tensor] = []
        metrics: list[float | Tensor] = []
        for g, group in enumerate(optimizer.param_groups):
            learning_rate = float(group["lr"])
            if learning_rate == 0:
                continue
            found = self._held(i for p in group["params"] if (i := self._index.get(id(p))) in last and i is not None)
            if not found:
                continue
            block = self._block((id(optimizer), g), found)
            metric = scaled_metric(optimizer, group, block.parameters, _inverse(learning_rate), block.space)
            blocks.append(block)
            weights += block.weights.load(block.parameters)
            metrics += metric if isinstance(metric, list) else [metric] * len(block.anchors)
        if not blocks:
            return
        columns = weights, [a for block in blocks for a in block.anchors], [f for b in blocks for f in b.importances]
        rest = self._held(sorted(set(range(len(self._parameters))).difference(*(block.held for block in blocks))))
        others = self._block((id(optimizer), "others"), rest).increase() if rest else 0.0
        room = self._budget
        if not others < room:  # also where others are not numbers
            # It cannot be given back here: these go half of their way. That may be too little to subtract from others.
            room, others = max(expected_increase(*columns) / 4, TINY), 0.0
        self._alpha = tolerance_step(*columns, metrics, tolerance=room, others=others, alpha=self._alpha)
        for block in blocks:
            block.weights.store(block.parameters)

    def _block(self, key: Any, held: list[int]) -> "_Block":
        """These weights together; packed from the second time on that the same are asked for, as that takes a while."""
        block = self._blocks.get(key)
        is_known = block is not None and block.held == held
        if block is None or not is_known or not block.is_settled:
            block = self._blocks[key] = _Block(held, *self._columns(held), is_known=is_known)
        return block

    def _held(self, indices: Iterable[int]) -> list[int]:
        """Those of the shared weights that have an anchor, after a check that it fits."""
        held = []
        for i in indices:
            anchor = self._anchors[i]
            if anchor is None:
                continue
            parameter = self._parameters[i]
            if anchor.device != parameter.device or anchor.dtype != parameter.dtype:
                raise ValueError(
                    f"Expected an anchor like its weight ({parameter.dtype} on {parameter.device}), but got "
                    f"{anchor.dtype} on {anchor.device}. Call plasticity.to(...) after moving the model."
                )
            held.append(i)
        return held

    def _columns(self, held: Iterable[int]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        rows = [(self._parameters[i], self._anchors[i], self._importances[i]) for i in held]
        parameters, anchors, importances = zip(*rows, strict=True)
        return list(parameters), list(anchors), list(importances)

    # ---- state -----------------------------------------------------------------------------------------------

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move anchors and importances, as `nn.Module.to` moves the weights.

        Args:
            device: The device of the weights.
            dtype: Their floating-point type; importances stay at least float32.

        Returns:
            This object.
        """
        wide = None if dtype is None else _wide(dtype)
        self._anchors = [None if a is None else a.to(device=device, dtype=dtype) for a in self._anchors]
        self._importances = [None if f is None else f.to(device=device, dtype=wide) for f in self._importances]
        self._blocks.clear()
        return self

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights: the options, and anchor and importance in the order of the shared weights."""
        return {
            "alpha": self.alpha,
            "tolerance": self.tolerance,
            "budget": self.budget,
            "rule": self.rule,
            "decay": self.decay,
            "damping": self.damping,
            "anchors": [None if a is None else a.clone() for a in self._anchors],
            "importances": [None if f is None else f.clone() for f in self._importances],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, for the same shared weights in the same order.

        Args:
            state: From `state_dict`. It is copied.

        Raises:
            ValueError: If a key is missing, the number of shared weights or a shape differs, or a value is one that
                the constructor or `consolidate` refuses. Nothing is changed then.
        """
        if missing := {"alpha", "rule", "decay", "damping", "anchors", "importances"} - state.keys():
            raise ValueError(
                f"Expected the state of a WeightPlasticity, but got one without {', '.join(sorted(missing))}. "
                "Pass what state_dict returned."
            )
        anchors, importances = state["anchors"], state["importances"]
        if len(anchors) != len(self._parameters) or len(importances) != len(self._parameters):
            raise ValueError(
                f"Expected the state of {len(self._parameters)} shared parameters, but got {len(anchors)} anchors and "
                f"{len(importances)} importances. Build the plasticity from the same weights, in the same order."
            )
        for i, (parameter, anchor, importance) in enumerate(zip(self._parameters, anchors, importances, strict=True)):
            _check_state(i, parameter, anchor, importance)
        tolerance, budget = state.get("tolerance"), state.get("budget")  # older states have none
        options = {name: state[name] for name in ("rule", "decay", "damping")}
        WeightPlasticity((), state["alpha"], **options)  # refuses bad ones
        if tolerance is not None and not (isinstance(budget, float) and 0 < budget <= _checked_tolerance(tolerance)):
            raise ValueError(
                f"Expected a budget above 0 and at most the tolerance {tolerance}, but got {budget}. "
                "The state is damaged."
            )
        self._alpha, self._tolerance, self._budget = float(state["alpha"]), tolerance, budget
        self.rule, self.decay, self.damping = options.values()
        devices = [parameter.device for parameter in self._parameters]
        self._anchors = [_copied(a, device) for a, device in zip(anchors, devices, strict=True)]
        self._importances = [_copied(f, device) for f, device in zip(importances, devices, strict=True)]
        self._blocks.clear()

    def __repr__(self) -> str:
        held = sum(anchor is not None for anchor in self._anchors)
        strength = f"alpha={self.alpha:g}" if self.tolerance is None else f"tolerance={self.tolerance:g}"
        return (
            f"WeightPlasticity({strength}, rule={self.rule!r}, "
            f"{held} of {len(self._parameters)} shared parameters held)"
        )

    def __getstate__(self) -> dict[str, Any]:
        """For a copy together with its model, by `copy.deepcopy` or pickle: same weights, attached to no optimizer."""
        return {"parameters": self._parameters, "state": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        WeightPlasticity.__init__(self, state["parameters"])
        self.load_state_dict(state["state"])


class _Block:
    """Held weights that are drawn together, the small ones packed.

    Attributes:
        held: Their places among the shared weights.
        parameters: The weights.
        weights: Space for their values.
        anchors, importances: Of what `weights.load` returns.
        space: Space for one number per weight, at least float32, such as a metric.
        is_settled: False if they will be packed when they are asked for again.
    """

    def __init__(
        self,
        held: list[int],
        parameters: list[Tensor],
        anchors: list[Tensor],
        importances: list[Tensor],
        *,
        is_known: bool,
    ) -> None:
        packing = Packing(parameters)
        self.is_settled = is_known or not packing.blocks
        if not self.is_settled:
            packing = Packing(parameters, any_packed=False)
        self.held, self.parameters = held, parameters
        self.weights, self.space = Packed(packing, parameters), Packed(packing, parameters, _wide)
        self.anchors = Packed(packing, parameters).load(anchors)
        self.importances = Packed(packing, importances).load(importances)
        self._pulls: tuple[float, list[Tensor]] | None = None

    def increase(self) -> float:
        return expected_increase(self.weights.load(self.parameters), self.anchors, self.importances)

    def pulls(self, metric: float | list[Tensor], weights: list[Tensor]) -> list[Tensor]:
        """s/(1 + s), which changes with lr and α only where the metric is constant."""
        if not isinstance(metric, float):
            return _pulls(self.importances, metric, weights)
        if self._pulls is None or self._pulls[0] != metric:
            self._pulls = (metric, _pulls(self.importances, metric, weights))
        return self._pulls[1]


def _unique_tensors(shared_parameters: Iterable[Any]) -> list[Tensor]:
    unique: dict[int, Tensor] = {}
    # A module alone, which cannot be iterated over, is told of like one among others.
    for item in [shared_parameters] if isinstance(shared_parameters, nn.Module) else shared_parameters:
        parameter = item[1] if isinstance(item, tuple) and len(item) == 2 else item
        if not isinstance(parameter, Tensor):
            raise TypeError(
                f"Expected shared parameters to be tensors or (name, tensor) pairs, but got {type(item).__name__}. "
                "Pass module.parameters() or module.named_parameters()."
            )
        unique.setdefault(id(parameter), parameter)
    return list(unique.values())


def _check_state(i: int, parameter: Tensor, anchor: Tensor | None, importance: Tensor | None) -> None:
    if (anchor is None) != (importance is None):
        raise ValueError(
            f"Expected anchor and importance {i} to be held together, but got one without the other. "
            "Pass what state_dict returned."
        )
    for kind, value in (("anchor", anchor), ("importance", importance)):
        if value is not None and value.shape != parameter.shape:
            raise ValueError(
                f"Expected {kind} {i} of shape {tuple(parameter.shape)}, but got {tuple(value.shape)}. "
                "Build the plasticity from the same weights, in the same order."
            )
        if value is not None and not bool(torch.isfinite(value).all()):
            raise ValueError(f"Expected finite {kind} {i}, but got inf or nan. The state is damaged.")
    if importance is not None and bool((importance < 0).any()):
        raise ValueError(f"Expected importance {i} to be at least 0, but got a negative one. The state is damaged.")


def _check_importance(name: str, parameter: Tensor, value: Tensor) -> None:
    if value.shape != parameter.shape:
        raise ValueError(
            f"Expected importance of {name!r} in the weight's shape {tuple(parameter.shape)}, but got "
            f"{tuple(value.shape)}. Compute it from the same model that is consolidated."
        )
    if value.device != parameter.device:
        raise ValueError(
            f"Expected importance of {name!r} on {parameter.device}, but got {value.device}. Move it there first."
        )
    if not bool(torch.isfinite(value).all()):
        raise DivergedError(
            f"Expected finite importance of {name!r}, but got inf or nan. Check that the model has not diverged."
        )
    if bool((value < 0).any()):
        raise ValueError(
            f"Expected importance of {name!r} to be at least 0, but got {value.min().item():g}. "
            "A Fisher information is a mean of squares."
        )


def _mean_over_all(tensors: Iterable[Tensor]) -> float:
    """Mean over the elements of all tensors together."""
    totals = [(float(tensor.sum(dtype=torch.float64)), tensor.numel()) for tensor in tensors]
    return sum(total for total, _ in totals) / max(1, sum(count for _, count in totals))


def _copied(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone().to(device)
