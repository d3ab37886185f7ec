"""Interpolation of shared weights with what they were before, when a training has ended (WiSE-FT)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.errors import DivergedError, InputError
from forgetless.protection.base import PROTECTIONS, Decisions, Evidence, Protection, ProtectionOptions, StrengthOptions

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class WiSEFTOptions(StrengthOptions):
    """Options of interpolation with earlier weights.

    Attributes:
        strength: w in [0, 1], the share of the earlier weights: 0 keeps what was trained, 1 takes it back.
    """

    fits: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {"strength": 0.5}, "fine-tune": {"strength": 0.4}}

    def check_strength(self) -> None:
        """Refuse a share outside of [0, 1]."""
        self.expect_share("strength")


@PROTECTIONS.register
class WiSEFT(Protection):
    """Trains plainly, and afterwards draws shared weights back along the line to where earlier models left them.

        θ ← θ̂ + (1 − w) (θ − θ̂)

    θ̂ is where a shared weight was when the last model that uses it was consolidated. In a chain of models, and in a
    search, that happens at the end of each model's training, before the model is measured or consolidated; the
    present model's own weights are not moved, though they were trained for θ. Running statistics of batch
    normalisation in the newest earlier model are interpolated, too.

    It costs nothing but two copies of the weights. One training serves all w: `finish` starts from its end again.

    Source: Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv:2109.01903, eq. 1, whose mixing
    coefficient α is 1 − w.
    """

    name: ClassVar[str] = "wise-ft"
    label: ClassVar[str] = "interpolation (WiSE-FT)"
    in_sentence: ClassVar[str] = "interpolation"
    colour: ClassVar[str | None] = "#B2182B"
    Options: ClassVar[type[ProtectionOptions]] = WiSEFTOptions
    symbol: ClassVar[str] = "w"
    acts_after: ClassVar[bool] = True

    def _set_up(self) -> None:
        self._statistics: list[Tensor] = []  # running ones of the newest model
        self._newest: Decisions = ()
        # By the place of a tensor: the shared weights, then the running statistics.
        self._anchors: dict[int, Tensor] = {}
        self._ends: dict[int, Tensor] = {}  # of the last training, of what has an anchor and was moved
        self._has_ended = False

    @classmethod
    def held_copies(cls, options: Any, num_outputs: float) -> float:  # noqa: ARG003
        """Anchor, and where training ended."""
        return 2

    @property
    def _tensors(self) -> list[Tensor]:
        return [*self.shared_parameters, *self._statistics]

    @contextlib.contextmanager
    def during(self, optimizer: Optimizer) -> Iterator[None]:
        """A context at whose end the weights that were trained in it are drawn back."""
        first = len(self.shared_parameters)
        moved = set(range(first, first + len(self._statistics)))
        handle = optimizer.register_step_pre_hook(
            lambda optimizer, _args, _kwargs: moved.update(self._moving(optimizer))
        )
        self._ends, self._has_ended = {}, False
        try:
            yield
        finally:
            handle.remove()
        tensors = self._tensors
        self._ends = {i: tensors[i].detach().clone() for i in sorted(moved & self._anchors.keys())}
        self._has_ended = True
        self.finish(self.strength)

    def finish(self, strength: float) -> None:
        """θ ← θ̂ + (1 − w) (θ − θ̂), from where the last training ended, whatever was done since.

        Args:
            strength: w in [0, 1].

        Raises:
            InputError: If w is none, or no training has ended since the last model was consolidated.
        """
        import torch

        if not 0 <= strength <= 1:
            raise InputError(f"Expected a share of the earlier weights in [0, 1], but got {strength}.")
        if not self._has_ended:
            raise InputError("Expected a training to finish, but got none. Train the next model inside during().")
        tensors = self._tensors
        with torch.no_grad():
            for i, end in self._ends.items():
                # Exact at both ends: w = 0 gives what was trained, w = 1 the anchor.
                tensors[i].copy_(torch.lerp(end, self._anchors[i], strength))

    def consolidate(self, model: nn.Module, evidence: Evidence) -> None:
        """Anchor the shared weights where the model leaves them.

        Raises:
            DivergedError: If they are not finite.
        """
        import torch

        first = len(self.shared_parameters)
        statistics = running_statistics(model)
        held = {self._index[id(p)] for p in model.parameters() if id(p) in self._index}
        found = {i: self.shared_parameters[i].detach().clone() for i in sorted(held)}
        found |= {first + k: statistic.clone() for k, statistic in enumerate(statistics)}
        if not all(bool(torch.isfinite(tensor).all()) for tensor in found.values()):
            raise DivergedError("Expected finite weights to go back to, but got inf or nan. Lower the learning rate.")
        self._anchors = {i: anchor for i, anchor in self._anchors.items() if i < first} | found
        self._statistics, self._newest = statistics, tuple(evidence.decisions)
        self._ends, self._has_ended = {}, False

    def reset(self) -> None:
        """Forget every anchor."""
        self._set_up()

    def state_dict(self) -> dict[str, Any]:
        """Anchors, and where the last training ended."""
        return {
            "anchors": {i: value.clone() for i, value in self._anchors.items()},
            "ends": {i: value.clone() for i, value in self._ends.items()},
            "has_ended": self._has_ended,
            "newest": list(self._newest),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: From `state_dict`.

        Raises:
            InputError: If there are running statistics and no `recall` was given to the constructor.
        """
        self._newest, self._has_ended = tuple(state["newest"]), state["has_ended"]
        has_statistics = any(i >= len(self.shared_parameters) for i in state["anchors"])
        self._statistics = running_statistics(self._expect_recall(1)(self._newest)[0]) if has_statistics else []
        devices = [tensor.device for tensor in self._tensors]
        self._anchors = {i: value.to(devices[i], copy=True) for i, value in state["anchors"].items()}
        self._ends = {i: value.to(devices[i], copy=True) for i, value in state["ends"].items()}


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Running means and variances of a model's batch normalisation, where it tracks them.

    Args:
        model: The model.
    """
    from torch.nn.modules.batchnorm import _NormBase

    layers = [layer for layer in model.modules() if isinstance(layer, _NormBase) and layer.track_running_stats]
    return [found for layer in layers for found in (layer.running_mean, layer.running_var) if found is not None]
