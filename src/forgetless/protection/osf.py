"""Orthogonal subspace fine-tuning: the leading singular directions of each weight stay, the others are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.configuration import fitting
from forgetless.errors import InputError
from forgetless.protection._adapters import AdapterProtection
from forgetless.protection.base import PROTECTIONS, ProtectionOptions, StrengthOptions

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class OSFOptions(StrengthOptions):
    """Options of orthogonal subspace fine-tuning.

    Attributes:
        strength: The share of each weight's singular directions that is kept, above 0 and below 1.
    """

    strength: float = fitting(basic=True)

    fits: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {"strength": 0.5}}

    def check_strength(self) -> None:
        """Refuse what is no share, or leaves nothing to train."""
        if self.strength is not None and not 0 < self.strength < 1:
            raise InputError(f"Expected the kept share of osf to be above 0 and below 1, but got {self.strength}.")


@PROTECTIONS.register
class OSF(AdapterProtection):
    """Keeps the leading singular directions of each weight of a linear layer, and trains the rest of it.

        W = Σ_i σ_i u_i v_iᵀ,  σ_1 ≥ σ_2 ≥ …:  the terms i ≤ k stay, the others are trained

    k is the strength times the smaller side of W, rounded down. The gradients of the trained u_i and v_i are projected
    out of the span of the kept ones, so that what W does along these stays. Biases, embeddings and normalisations are
    not trained. Large singular values stand for what the model knows; nothing is asked about it.

    **Exactness.** Under plain SGD without weight decay the kept directions stay exactly. Adam scales each number on its
    own: its step is no longer orthogonal to them.

    Source: Nayak et al. 2025, Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning,
    arXiv:2504.07097, with one k for all layers where the paper has one for each, by how much a layer changes its input.
    The layers are PEFT's. They stand in for `torch.nn.Linear` alone: the `Conv1D` of GPT-2 is refused.
    """

    name: ClassVar[str] = "osf"
    label: ClassVar[str] = "orthogonal subspace"
    in_sentence: ClassVar[str] = "orthogonal subspace fine-tuning"
    colour: ClassVar[str | None] = "#17BECF"
    Options: ClassVar[type[ProtectionOptions]] = OSFOptions
    symbol: ClassVar[str] = "kept share"
    layer_kinds: ClassVar[tuple[str, ...]] = ("Linear",)

    @classmethod
    def held_copies(cls, options: Any, num_outputs: float) -> float:  # noqa: ARG003
        """What is trained, about 2 (1 − share) numbers for each weight of a square layer, twice: as it was, too."""
        return 4 * (1 - float(options.strength))

    @classmethod
    def adapter_config(cls, options: OSFOptions, layers: Mapping[str, nn.Module]) -> Any:
        """Of the share.

        Args:
            options: The share.
            layers: What to adapt, by name.

        Raises:
            InputError: If nothing of a layer would be kept.
        """
        from peft import OSFConfig

        for name, layer in layers.items():
            sides: tuple[int, ...] = tuple(layer.weight.shape)  # type: ignore[arg-type]
            if int(options.strength * min(sides)) < 1:
                raise InputError(
                    f"Expected a kept share of osf that keeps a direction in every layer, but got {options.strength}, "
                    f"which keeps none of the {min(sides)} of {name}. Choose more than {1 / min(sides):.3g}."
                )
        return OSFConfig(effective_rank=options.strength, target_modules=list(layers))
