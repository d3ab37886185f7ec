"""The weight plasticity loss in anybody's training loop: what is held, and the steps that apply it."""

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from forgetless.choices import AccumulationRule
from forgetless.plasticity.attaching import Following, check_metric, innermost
from forgetless.plasticity.budget import Limit, expected_increase
from forgetless.plasticity.held_weights import HeldWeights, Shared
from forgetless.plasticity.metric import Metric
from forgetless.plasticity.penalty import check_alpha, quadratic_penalty
from forgetless.plasticity.state import check_state
from forgetless.plasticity.step import draw, draw_within
from forgetless.plasticity.storage import Storage, saved
from forgetless.sharding import largest, local

_DEFAULT_ALPHA = 1.0


class WeightPlasticity(HeldWeights):
    """Keeps what earlier models need of shared weights while other models train on them.

    Train model A as usual and `consolidate` it; then train B as usual, with the plasticity attached to B's optimizer
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

    Weights that a model did not use keep both, and do not move; so do parts of a weight, such as the rest of an elastic
    width: see `consolidate`. Buffers of shared modules, such as BatchNorm's statistics, are held where the last
    consolidated model left them, or are each model's own in `buffers_of`.

    Source: arXiv:1902.08232; `merge` is the recursion of its two-model posterior, compare Matena and Raffel 2022
    (arXiv:2111.09832). α multiplies when the penalty is computed and is never stored into F.

    Args:
        shared_parameters: What is shared: a module, or any iterable of modules, parameters, or (name, either) pairs.
            Only their identity matters; a weight that is never consolidated is never held. `fully_shard` replaces
            weights: build this after it, and anchors and importances are sharded as they are. Buffers are held of
            modules only; where parameters alone are given and such buffers train, there is a warning.
        alpha: Strength α ≥ 0; 1 if neither it nor a tolerance is given: the posterior's own, where importance is per
            target (per example of T targets, whose loss is their mean, it is T). More keeps earlier models better and
            leaves later ones less freedom; 10⁵ is close to freezing.
        tolerance: In place of α: ½ Σ_i F_i (θ_i − θ̂_i)², over all held weights, stays at most this (to 1 in 10⁶), and α
            becomes the multiplier of this constraint, see `forgetless.plasticity.budget`. The form is the increase of
            the earlier models' mean loss, in its unit, that the Fisher predicts from one `consolidate` to the next (of
            several models their sum under `sum` and `joint`). It is off by a factor of 3 to 100 where weights move
            together, and 1/T of the increase where an example has T targets (a chunk of text) and its loss is their
            mean: `calibrate` makes it what is measured.
        rule: How importance accumulates over models; see the table.
        decay: For `ema` and `merge`, how much of the old importance stays, in [0, 1].
        damping: Added to every importance of a model, as a share of their mean: F_i + damping · mean(F), at least 0.
            The curvature of the log joint holds the prior's precision, which the Fisher leaves out; without it,
            weights around a unit that is silent in A have F = 0, are free to move, and can wake it. 0 is the paper's
            penalty; 10⁻³ protects models that were stopped early.
        importance_dtype: None holds importances in at least float32; `torch.bfloat16` in two bytes, `torch.uint8` in
            one and a scale for each 1,024. States hold them in bfloat16 and float32.
        anchor: None holds anchors beside the weights; "cpu" in the memory of the CPU, a folder in temporary files
            there, mapped into memory. They are read at every step.
        every: One proximal step follows so many steps of an optimizer, with their learning rates added up: it rests at
            the same weights. Between two, weights move freely; train for a multiple of it.
        compiled: Weights of 2¹⁵ elements or more take SGD's and Adam's proximal step in one compiled pass, equal to
            10⁻⁶. It is not the default because the first step waits for the compiler, 5 to 60 seconds. Without a
            compiler there is a warning, and the step is taken in chunks.

    Raises:
        ValueError: If `alpha` or `damping` is negative or not finite, `tolerance` not above 0 and finite, both `alpha`
            and `tolerance` are given, `rule` is unknown, `decay` lies outside [0, 1], `importance_dtype` is another
            type, `anchor` no folder, or `every` no whole number of at least 1.
        TypeError: If what is shared is neither a module nor a tensor.

    >>> from torch import nn
    >>> trunk = nn.Linear(2, 2)
    >>> a, b = nn.Sequential(trunk, nn.Linear(2, 3)), nn.Sequential(trunk, nn.Linear(2, 5))
    >>> optimizer = torch.optim.SGD(b.parameters(), lr=0.1)
    >>> plasticity = WeightPlasticity(trunk, alpha=1e5).attach(optimizer)
    >>> plasticity.consolidate(a, {name: torch.ones_like(weight) for name, weight in a.named_parameters()})
    >>> before = trunk.weight.clone()
    >>> b(torch.ones(1, 2)).sum().backward()
    >>> optimizer.step()
    >>> torch.allclose(trunk.weight, before, atol=1e-3)
    True
    """

    def __init__(
        self,
        shared_parameters: Shared,
        alpha: float | None = None,
        *,
        tolerance: float | None = None,
        rule: AccumulationRule = "sum",
        decay: float = 0.9,
        damping: float = 0.0,
        importance_dtype: torch.dtype | None = None,
        anchor: str | Path | None = None,
        every: int = 1,
        compiled: bool = False,
    ) -> None:
        super().__init__(
            shared_parameters, rule, decay, damping, Storage(importance_dtype, anchor), is_compiled=compiled
        )
        if alpha is not None and tolerance is not None:
            raise ValueError(
                f"Expected alpha or tolerance, but got both ({alpha} and {tolerance}). "
                "Under a tolerance alpha is found, not chosen."
            )
        self._limit = None if tolerance is None else Limit(tolerance)
        self._alpha = 0.0  # what is given where there is no budget
        if tolerance is None:
            self.alpha = _DEFAULT_ALPHA if alpha is None else alpha
        if not (isinstance(every, int) and every >= 1):
            raise ValueError(
                f"Expected every to be a whole number of at least 1, but got {every}. "
                "It is how many steps of an optimizer one proximal step follows."
            )
        self.every = every
        self._waiting: list[Any] = []  # noted steps of a state, for optimizers that will be attached
        self._following: weakref.WeakKeyDictionary[Optimizer, Following] = weakref.WeakKeyDictionary()

    @property
    def alpha(self) -> float:
        """Strength α of the protection; may be set at any time, but under a tolerance, where it is the multiplier."""
        return self._alpha if self._limit is None else self._limit.multiplier

    @alpha.setter
    def alpha(self, value: float) -> None:
        check_alpha(value)
        if self._limit is not None:
            raise ValueError(
                f"Expected no alpha under a tolerance, where it is the multiplier of the constraint, but got {value}. "
                "Set the tolerance."
            )
        self._alpha = float(value)

    @property
    def tolerance(self) -> float | None:
        """What earlier models may lose; None if α is given instead. May be set at any time if it is not None."""
        return None if self._limit is None else self._limit.tolerance

    @tolerance.setter
    def tolerance(self, value: float) -> None:
        if self._limit is None:
            raise ValueError(
                f"Expected no tolerance where alpha is given, but got {value}. "
                "Build another WeightPlasticity(tolerance=...)."
            )
        self._limit.tolerance = value

    @property
    def budget(self) -> float | None:
        """What ½ Σ F_i (θ_i − θ̂_i)² may be: the tolerance, or less after `calibrate`; None if α is given."""
        return None if self._limit is None else self._limit.limit

    def reset(self) -> None:
        """Forget every anchor and importance; nothing is held until the next `consolidate`."""
        super().reset()
        if self._limit is not None:
            self._limit.reset()

    # ---- while another model trains --------------------------------------------------------------------------

    def penalty(self) -> Tensor:
        """The penalty α/2 Σ F_i (θ_i − θ̂_i)² of the present weights: a differentiable scalar, 0 if nothing is held.

        For loops that add losses. Do not also `attach`: the protection would count twice.

        Raises:
            ValueError: If an anchor is on another device or of another type than its weight, or there is a tolerance,
                which only a step can keep.
        """
        if self._limit is not None:
            raise ValueError(
                "Expected a penalty of given alpha, but got a tolerance, whose alpha only steps can find. "
                "Attach to the optimizer, or give alpha."
            )
        held = self._weights.all_held()
        if not held[0]:
            reference = self._weights.parameters[0] if self._weights.parameters else torch.zeros(())
            return local(reference).new_zeros(())
        return quadratic_penalty(*held, self.alpha)

    def expected_increase(self) -> float:
        """½ Σ F_i (θ_i − θ̂_i)² of the present weights, without α: how much the Fisher expects earlier models to lose.

        Raises:
            ValueError: If an anchor is on another device or of another type than its weight.
        """
        return expected_increase(*self._weights.all_held())

    @torch.no_grad()
    def calibrate(self, increase: float, optimizer: Optimizer | None = None) -> None:
        """Tell how much more the earlier models' loss is now than right after they were trained, as measured.

        The quadratic form takes a weight's part for independent of the others', and the earlier models for being at an
        optimum. Under a tolerance `budget`, which is what the form may be, shrinks where more was lost than allowed and
        grows again where less was. Call it every 10 steps or so, and after the first few, with the loss on some hundred
        held-out examples. Of several earlier models the largest increase counts. Every process is to be told the same;
        where weights are sharded, the largest of what they are told counts.

        Args:
            increase: In the unit of the tolerance; negative where the models got better.
            optimizer: An attached one. Where it was too much, the weights that its last step moved are drawn back now,
                into the new budget, and not only after its next step. Measure again then: it may still be too much.

        Raises:
            ValueError: If there is no tolerance, or the optimizer is not attached.
        """
        if self._limit is None:
            raise ValueError("Expected a tolerance to calibrate, but got none. Give one in place of alpha.")
        optimizer = None if optimizer is None else innermost(optimizer)
        if optimizer is not None and optimizer not in self._following:
            raise ValueError("Expected an attached optimizer to calibrate with, but got one that is not. Attach it.")
        increase = largest(increase, self._weights.parameters)
        is_too_much = self._limit.adapt(increase, self.expected_increase())
        if is_too_much and optimizer is not None and (drawn := self._following[optimizer].drawn) is not None:
            draw_within(self._limit, self._weights, optimizer, drawn, self._following[optimizer].metric)

    def attach(self, optimizer: Optimizer, metric: Metric | None = None) -> Self:
        """Follow every step of an optimizer by a proximal step on the shared weights it moved.

        The proximal step is taken in the optimizer's own metric, s_i = lr · α · F_i / d_i, with d chosen such that a
        weight comes to rest where the gradient of the whole loss of eq. 8 vanishes, at the same α for each: see
        `forgetless.plasticity.scaled_metric`. It is known for all of `torch.optim` but LBFGS and Rprop, and for some
        beside it. Of an optimizer that is not known it is 1, with a warning, or what `metric` says.

        Under a tolerance there is one multiplier α for all groups, which several optimizers hand on to each other. Each
        draws back the weights that it moved; those of the others keep their part of the budget.

        Learning rates are read from the parameter groups at each step, so groups and schedules are honoured. Weights
        without a gradient are left alone, as the optimizer leaves them. A loop that scales gradients by κ, as clipping
        does, scales those of the loss alone: α then counts as α/κ.

        Args:
            optimizer: Trains the next model. May be attached before or after `consolidate`. In a wrapper, such as
                accelerate's, Lightning's, Lookahead or sharpness-aware minimisation, the one inside is followed.
            metric: Maps (optimizer after its step, the weight's parameter group, the weight) to d > 0, a number or a
                tensor in the weight's shape: a steady gradient g moves the weight by lr·g/d per step, with the group's
                lr, or 1 where that is None.

        Returns:
            This object.

        Raises:
            ValueError: If the optimizer holds none of the shared weights, is attached already, has no hooks, or is one
                that a proximal step cannot follow.
        """
        optimizer = innermost(optimizer)
        if optimizer in self._following:
            raise ValueError("Expected an optimizer that is not attached yet, but got one that is. Detach it first.")
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        if self._weights.parameters and not any(id(p) in self._weights.places.index for p in parameters):
            raise ValueError(
                "Expected an optimizer of some of the shared parameters, but got one that holds none. "
                "Attach to the optimizer that trains the shared weights, and build both after fully_shard, which "
                "replaces them."
            )
        check_metric(optimizer, metric)
        # Within a compiled step they would be compiled anew whenever a number in them changes.
        before, after = map(torch.compiler.disable, (self._before_step, self._after_step))
        handles = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
        self._following[optimizer] = following = Following(handles, metric)
        if self._waiting:
            following.steps.load(self._waiting.pop(0))
        return self

    def detach(self, optimizer: Optimizer | None = None) -> None:
        """Stop following an optimizer, or all of them. Anchor and importance stay.

        Args:
            optimizer: The one to leave; all if None.
        """
        optimizer = None if optimizer is None else innermost(optimizer)
        for following in list(self._following) if optimizer is None else [optimizer]:
            if (left := self._following.pop(following, None)) is not None:
                left.remove()
        self._weights.forget_blocks()

    def _before_step(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        self._weights.check_before(optimizer)
        self._weights.warn_if_moved()
        self._watch.check()

    def _after_step(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        following = self._following[optimizer]
        if self._limit is None and self._alpha == 0:
            following.steps.clear()
        else:
            following.steps.note(self._weights.places, optimizer)
        if len(following.steps) >= self.every:
            moved = following.steps.take()
            if self._limit is None:
                draw(self._alpha, self._weights, optimizer, moved, following.metric)
            else:
                following.drawn = moved
                draw_within(self._limit, self._weights, optimizer, moved, following.metric)
        self._buffers.hold()

    def _forget_steps(self) -> None:
        self._waiting = []
        for following in self._following.values():
            following.steps.clear()

    # ---- state -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights: the options, and anchor and importance in the order of the shared weights."""
        held = self._weights
        return {
            "alpha": self.alpha,
            "tolerance": self.tolerance,
            "budget": self.budget,
            "rule": self.rule,
            "decay": self.decay,
            "damping": self.damping,
            "every": self.every,
            "steps": [following.steps.state() for following in self._following.values()],
            "anchors": [None if a is None else a.clone() for a in held.anchors],
            "importances": [None if f is None else saved(f) for f in held.importances],
            "used": [None if u is None else u.clone() for u in held.used],
            "buffers": [None if b is None else b.clone() for b in self._buffers.anchors],
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
        anchors, importances, alpha = state["anchors"], state["importances"], state["alpha"]
        check_state(self._weights.parameters, anchors, importances)
        options = {name: state[name] for name in ("rule", "decay", "damping")}
        every = state.get("every", self.every)  # older states have none
        WeightPlasticity((), alpha, every=every, **options)  # refuses bad ones
        tolerance = state.get("tolerance")  # older states have none
        limit = None if tolerance is None else Limit.restored(tolerance, state.get("budget"), float(alpha))
        self._buffers.load(state.get("buffers") or self._buffers.anchors)  # older states have none
        self._limit, self._alpha = limit, float(alpha)
        self.rule, self.decay, self.damping = options.values()
        self._weights.load(anchors, importances, state.get("used"))
        self.every = every
        self._forget_steps()
        self._waiting = list(state.get("steps", ()))
        for following in self._following.values():
            if self._waiting:
                following.steps.load(self._waiting.pop(0))

    def __repr__(self) -> str:
        held = sum(anchor is not None for anchor in self._weights.anchors)
        strength = f"alpha={self.alpha:g}" if self.tolerance is None else f"tolerance={self.tolerance:g}"
        return (
            f"WeightPlasticity({strength}, rule={self.rule!r}, "
            f"{held} of {len(self._weights.parameters)} shared parameters held)"
        )

    def __getstate__(self) -> dict[str, Any]:
        """For a copy together with its model, by `copy.deepcopy` or pickle: same weights, attached to no optimizer."""
        return {
            "parameters": [*self._weights.parameters, *self._weights.places.modules],
            "options": {
                "importance_dtype": self._weights.storage.importance_dtype,
                "anchor": self._weights.storage.anchor_place,
                "compiled": self._weights.compiled is not None,
            },
            "state": self.state_dict(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        WeightPlasticity.__init__(self, state["parameters"], **state["options"])
        self.load_state_dict(state["state"])
