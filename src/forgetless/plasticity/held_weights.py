"""What earlier models need of shared weights: an anchor and an importance for each, folded in model by model."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Self

import torch
from torch import Tensor, nn

from forgetless.choices import AccumulationRule
from forgetless.importance import unwrapped
from forgetless.plasticity.buffers import BufferWatch, SharedBuffers
from forgetless.plasticity.merging import check_rule
from forgetless.plasticity.metric import wide_type
from forgetless.plasticity.shared_weights import SharedWeights
from forgetless.plasticity.storage import Storage, dense

Shared = nn.Module | Iterable[nn.Module | Tensor | tuple[str, nn.Module | Tensor]]
"""A module, or any iterable of modules, parameters, or (name, either) pairs."""


class HeldWeights:
    """Anchors and importances of shared weights; `WeightPlasticity` applies them and has the formulas of the rules.

    Args:
        shared_parameters: What is shared.
        rule: How importance accumulates over models.
        decay: For `ema` and `merge`, how much of the old importance stays, in [0, 1].
        damping: Added to every importance of a model, as a share of their mean.
        storage: How anchors and importances are held.
        is_compiled: Whether large weights are drawn in one compiled pass.

    Raises:
        ValueError: If `rule` is unknown, `decay` lies outside [0, 1], or `damping` is negative or not finite.
        TypeError: If what is shared is neither a module nor a tensor.
    """

    def __init__(
        self,
        shared_parameters: Shared,
        rule: AccumulationRule,
        decay: float,
        damping: float,
        storage: Storage,
        *,
        is_compiled: bool,
    ) -> None:
        check_rule(rule, decay, damping)
        self.rule: AccumulationRule = rule
        self.decay = decay
        self.damping = damping
        self._weights = SharedWeights(shared_parameters, storage, is_compiled=is_compiled)
        self._buffers = SharedBuffers(self._weights.places.modules)
        self._watch = BufferWatch()

    @property
    def shared_parameters(self) -> tuple[Tensor, ...]:
        """The shared weights, in the order given."""
        return tuple(self._weights.parameters)

    def anchor(self, parameter: Tensor) -> Tensor | None:
        """θ̂ of a shared weight; None before the first model that used it was consolidated."""
        return self._weights.anchors[self._weights.places.index[id(parameter)]]

    def importance(self, parameter: Tensor) -> Tensor | None:
        """F of a shared weight; None before the first model that used it was consolidated."""
        importance = self._weights.importances[self._weights.places.index[id(parameter)]]
        return None if importance is None else dense(importance)

    @torch.no_grad()
    @torch.inference_mode(mode=False)
    def consolidate(
        self, model: nn.Module, importance: Mapping[str, Tensor], where: Mapping[str, Tensor] | None = None
    ) -> None:
        """Remember where a trained model left the shared weights, and how much it needs each.

        Weights that the model does not hold, or that `importance` does not name, keep anchor and importance, and so do
        parts of a weight that it did not use. Outside of the mask that says so, no rule changes anything, `merge` does
        not move the weight, and damping adds nothing; what no model has used has importance 0 and is free.

        Without masks, a slice of a weight along any dimension (a row or a column, one element of a vector) whose F_j
        is exactly 0 throughout counts as unused if an earlier model was anchored there, under every rule. At the first
        `consolidate` it does not: a unit that is merely silent has F_j = 0 as well, and is what damping is for.

        Args:
            model: The model just trained.
            importance: F_j ≥ 0 by the parameter names of `model`, as `diagonal_fisher` returns it. Names of weights
                that are not shared are allowed and ignored. Of a complex weight the mean of |g|².
            where: Boolean masks by the same names, in shapes that expand to the weights': True where the model used
                the weight. Weights without one were used wholly, so that `{}` takes every F_j = 0 as it is.

        Raises:
            ValueError: If a name is not a parameter of `model`, a shape differs, a value is negative or not finite,
                a device differs, a mask is none, or `importance` names none of the shared weights. Nothing is changed
                then.
        """
        model = unwrapped(model)
        places = self._weights.places
        found = places.of_model(model, importance)
        masks = self._weights.used_parts(found) if where is None else places.masks_of_model(model, found, where)
        self._weights.fold(found, self.rule, self.decay, self.damping, masks)
        self._forget_steps()
        self._buffers.consolidate(model)
        self._watch.consolidate(model, places.index.keys(), self._buffers.modules)

    def buffers_of(self, model: nn.Module) -> AbstractContextManager[None]:
        """A context in which the buffers of shared modules, such as BatchNorm's statistics, are this model's own.

        They are those that the model was consolidated with, or that it had at the end of the last such context. Train
        and evaluate a model in it that normalises by statistics of its own; outside, buffers are held where the last
        model that was consolidated there left them. Nothing happens if no modules are shared, or they have no buffers.

        Args:
            model: One that uses the shared modules, or a part of it.
        """
        return self._buffers.of(unwrapped(model))

    def _forget_steps(self) -> None:
        """Called where what is held changes: steps before it are not to be followed any more."""

    @torch.no_grad()
    def replace(self, old: Tensor, new: Tensor) -> None:
        """Let a weight take the place of a shared one that the model no longer has, as resizing and growing do.

        The leading part that both shapes have keeps anchor and importance; what is new is free until a model that has
        it is consolidated. Put `new` into the optimizer by yourself.

        Args:
            old: A shared weight, or one that was resized in place.
            new: The weight that the model has now; may be `old`.

        Raises:
            ValueError: If `old` is not shared, `new` is shared by itself, or they differ in the number of dimensions.

        >>> from forgetless import WeightPlasticity
        >>> old, new = nn.Linear(2, 3).weight, nn.Linear(2, 5).weight
        >>> plasticity = WeightPlasticity([old])
        >>> plasticity.replace(old, new)
        >>> plasticity.shared_parameters[0] is new
        True
        """
        self._weights.replace(old, new)

    def warn_if_moved(self) -> None:
        """Warn if the shared weights are no longer where the last `consolidate` found them; then forget to ask.

        Something other than an optimizer, such as weight averaging, has then moved them, and the anchor is not where
        the model is. The next step asks by itself.
        """
        self._weights.warn_if_moved()

    def reset(self) -> None:
        """Forget every anchor and importance; nothing is held until the next `consolidate`."""
        self._weights.reset()
        self._buffers.reset()
        self._forget_steps()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move anchors and importances, as `nn.Module.to` moves the weights; `follow_weights` needs no arguments.

        Args:
            device: The device of the weights.
            dtype: Their floating-point type; importances stay at least float32.

        Returns:
            This object.
        """
        self._weights.to(device, dtype)
        self._buffers.to(device, dtype)
        return self

    def blank_tensors(self) -> dict[str, list[Tensor]]:
        """Zeros of the shapes, types and layouts of the tensors that `state_dict` may hold, by their names in it."""
        weights = [weight.detach() for weight in self._weights.parameters]
        return {
            "anchors": [torch.zeros_like(weight) for weight in weights],
            "importances": [torch.zeros_like(weight, dtype=wide_type(weight.dtype)) for weight in weights],
            "used": [torch.zeros_like(weight, dtype=torch.bool) for weight in weights],
            "buffers": self._buffers.blank(),
        }

    def follow_weights(self) -> Self:
        """Move each anchor and importance to the device and type that its weight has now.

        Returns:
            This object.
        """
        self._weights.follow()
        return self
