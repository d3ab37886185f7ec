"""Low-rank adaptation: the weights stay, and what is trained is a low-rank term beside each of them."""

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
class LoRAOptions(StrengthOptions):
    """Options of low-rank adaptation.

    Attributes:
        strength: The rank r, a whole number of at least 1; a smaller one keeps more.
        scale: s of W + s·BA, above 0: `lora_alpha / r` of PEFT.
    """

    strength: float = fitting(basic=True)
    scale: float = 2.0

    fits: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {"strength": 8.0}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_positive("scale")

    def check_strength(self) -> None:
        """Refuse what is no rank."""
        if self.strength is not None and not (self.strength >= 1 and float(self.strength).is_integer()):
            raise InputError(f"Expected the rank of lora to be a whole number of at least 1, but got {self.strength}.")


@PROTECTIONS.register
class LoRA(AdapterProtection):
    """Adds to each weight W of a linear layer a product of two thin matrices, W + s·BA, and trains these alone.

    A (r × inputs) is random and B (outputs × r) is 0 at first, so that the model starts as it was. Biases, embeddings
    and normalisations are not trained. Nothing is asked about what the model knew: it is kept only as far as a change
    of rank r in each layer cannot overwrite it.

    Source: Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685, eq. 3, here in every
    linear layer and not only in the projections of attention. The layers are PEFT's.
    """

    name: ClassVar[str] = "lora"
    label: ClassVar[str] = "LoRA"
    colour: ClassVar[str | None] = "#8C564B"
    Options: ClassVar[type[ProtectionOptions]] = LoRAOptions
    symbol: ClassVar[str] = "rank"
    layer_kinds: ClassVar[tuple[str, ...]] = ("Linear", "Conv1D")

    @classmethod
    def adapter_config(cls, options: LoRAOptions, layers: Mapping[str, nn.Module]) -> Any:
        """Of the rank and scale, without dropout.

        Args:
            options: Rank and scale.
            layers: What to adapt, by name.
        """
        from peft import LoraConfig

        rank = int(options.strength)
        scaled: Any = options.scale * rank  # annotated as a whole number there, and used as any
        return LoraConfig(
            r=rank,
            lora_alpha=scaled,
            target_modules=list(layers),
            # In a Conv1D of transformers weights lie in (inputs, outputs).
            fan_in_fan_out=all(type(layer).__name__ == "Conv1D" for layer in layers.values()),
        )
