"""Synaptic intelligence: α/2 Σ Ω_i (θ_i − θ̂_i)², Ω how much each weight's way lowered an earlier model's loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.errors import InputError
from forgetless.protection.base import PROTECTIONS, Evidence, ProtectionOptions
from forgetless.protection.quadratic import QuadraticOptions, QuadraticProtection

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class SIOptions(QuadraticOptions):
    """Options of synaptic intelligence.

    Attributes:
        xi: ξ > 0, which bounds Ω where a weight ended close to where it began; weight². The paper's values are 0.1 and
            10⁻³.
    """

    xi: float = 1e-3

    fits: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {"strength": 1.0}}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.xi > 0:
            raise InputError(f"Expected xi to be above 0, but got {self.xi}. The paper's values are 0.1 and 1e-3.")


@PROTECTIONS.register
class SI(QuadraticProtection):
    """Draws each shared weight back as strongly as its way, while an earlier model trained, lowered that model's loss.

        ω_i = −Σ_t g_i(t) (θ_i(t + 1) − θ_i(t)),    Ω_i = max(0, ω_i / ((θ_i(end) − θ_i(start))² + ξ))

    over the steps t of the model's training, which is one `during`; g(t) is the gradient that the optimizer stepped
    with (where gradients are clipped, the clipped one), and a step is the whole way of the weight, the pull towards
    earlier models included. Σ_i ω_i is what the loss fell by, to first order. Over several models Ω is summed (or
    accumulated by another rule) and the anchor moves to the newest model. It needs no pass over the data after
    training, but it must have watched the training of every model that it is to keep.

    Source: Zenke et al. 2017, arXiv:1703.04200, eq. 3–5. Their c Σ Ω (θ̃ − θ)² is ours at α = 2 c; theirs is added to
    the loss, ours taken as a proximal step.
    """

    name: ClassVar[str] = "si"
    label: ClassVar[str] = "path integral (SI)"
    colour: ClassVar[str | None] = "#000000"
    Options: ClassVar[type[ProtectionOptions]] = SIOptions
    watches: ClassVar[bool] = True
    options: SIOptions

    def _set_up(self) -> None:
        super()._set_up()
        self._has_watched = False
        # Of the weights that got a gradient since `during` began, by their place among the shared ones.
        self._starts: dict[int, Tensor] = {}
        self._paths: dict[int, Tensor] = {}  # ω
        self._before: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def during(self, optimizer: Optimizer) -> Iterator[None]:
        """A context that follows the weights from its beginning, with the proximal step after each step."""
        self._starts, self._paths, self._has_watched = {}, {}, True
        with super().during(optimizer):
            # After the proximal step's own hook, so that a step is the whole way.
            handles = [
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_whole_step),
            ]
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()
                self._before = {}

    def _before_step(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        self._before = {i: self.shared_parameters[i].detach().clone() for i in self._moving(optimizer)}
        for i, value in self._before.items():
            if i not in self._starts:
                self._starts[i] = value.clone()
                self._paths[i] = value.new_zeros(value.shape)

    def _after_whole_step(self, _optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        import torch

        moved = list(self._before)
        if not moved:
            return
        weights = [self.shared_parameters[i].detach() for i in moved]
        back = torch._foreach_sub([self._before[i] for i in moved], weights)  # θ(t) − θ(t + 1)
        gradients = [gradient for i in moved if (gradient := self.shared_parameters[i].grad) is not None]
        torch._foreach_addcmul_([self._paths[i] for i in moved], gradients, list(back))

    def importance(self, model: nn.Module, evidence: Evidence) -> Mapping[str, Tensor]:  # noqa: ARG002
        """Ω of the last `during`.

        Raises:
            InputError: If no training was watched since the last `consolidate`.
        """
        from forgetless.importance import unwrapped

        if not self._has_watched:
            raise InputError(
                "Expected si to have watched the model's training, but it has not. Train the model inside during()."
            )
        found = {
            name: self._importance_of(self._index[id(parameter)])
            for name, parameter in unwrapped(model).named_parameters()
            if id(parameter) in self._index
        }
        self._starts, self._paths, self._has_watched = {}, {}, False
        return found

    def _importance_of(self, i: int) -> Tensor:
        """Ω of one weight; 0 where it never got a gradient."""
        weight = self.shared_parameters[i].detach()
        if i not in self._paths:
            return weight.new_zeros(weight.shape)
        return (self._paths[i] / ((weight - self._starts[i]).square() + self.options.xi)).clamp_(min=0)

    def state_dict(self) -> dict[str, Any]:
        """Anchors and importances, and the way of the weights since `during` began."""
        return {
            **super().state_dict(),
            "has_watched": self._has_watched,
            "starts": {i: value.clone() for i, value in self._starts.items()},
            "paths": {i: value.clone() for i, value in self._paths.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self._has_watched = state["has_watched"]
        devices = [parameter.device for parameter in self.shared_parameters]
        self._starts = {i: value.to(devices[i], copy=True) for i, value in state["starts"].items()}
        self._paths = {i: value.to(devices[i], copy=True) for i, value in state["paths"].items()}
