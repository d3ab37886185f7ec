"""Weight plasticity together with distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forgetless.protection.base import PROTECTIONS, ProtectionOptions
from forgetless.protection.lwf import LwF, LwFOptions
from forgetless.protection.plastic_rehearsal import PlasticRehearsal, PlasticRehearsalOptions


@dataclass(frozen=True, kw_only=True)
class WPLLwFOptions(PlasticRehearsalOptions, LwFOptions):
    """Options of weight plasticity together with distillation.

    Attributes:
        strength: λ, weight of distillation and quadratic penalty, at least 0.
        alpha: α of the quadratic penalty relative to distillation, at least 0; 0 is distillation alone.
    """


@PROTECTIONS.register
class WPLLwF(PlasticRehearsal, LwF):
    """Keeps the outputs of earlier models on present inputs, and draws shared weights back as strongly as these need.

        L(θ) + λ (1/M Σ_m T² KL(softmax(ẑ_m/T) ‖ softmax(z_m/T)) + α/2 Σ F_i (θ_i − θ̂_i)²)

    Distillation sees only inputs of the present model; the penalty knows what mattered for the earlier ones. See `lwf`
    and `wpl`.
    """

    name: ClassVar[str] = "wpl-lwf"
    label: ClassVar[str] = "plasticity and distillation"
    in_sentence: ClassVar[str] = "weight plasticity with distillation"
    colour: ClassVar[str | None] = "#35978F"
    Options: ClassVar[type[ProtectionOptions]] = WPLLwFOptions
    options: WPLLwFOptions
