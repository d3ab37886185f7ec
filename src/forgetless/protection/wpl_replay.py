"""Weight plasticity together with replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forgetless.protection.base import PROTECTIONS, ProtectionOptions
from forgetless.protection.plastic_rehearsal import PlasticRehearsal, PlasticRehearsalOptions
from forgetless.protection.replay import Replay, ReplayOptions


@dataclass(frozen=True, kw_only=True)
class WPLReplayOptions(PlasticRehearsalOptions, ReplayOptions):
    """Options of weight plasticity together with replay.

    Attributes:
        strength: λ, weight of replay and quadratic penalty, at least 0.
        alpha: α of the quadratic penalty relative to replay, at least 0; 0 is replay alone.
    """


@PROTECTIONS.register
class WPLReplay(PlasticRehearsal, Replay):
    """Replays remembered examples of earlier models, and draws shared weights back as strongly as these need them.

        L(θ) + λ (1/M Σ_m L_m(θ; examples of m) + α/2 Σ F_i (θ_i − θ̂_i)²)

    Both terms say what earlier models lose: replay on few examples but at any distance, the penalty to second order
    but from all examples that the Fisher information was computed on, and without noise. See `replay` and `wpl`.
    """

    name: ClassVar[str] = "wpl-replay"
    label: ClassVar[str] = "plasticity and replay"
    in_sentence: ClassVar[str] = "weight plasticity with replay"
    colour: ClassVar[str | None] = "#08306B"
    Options: ClassVar[type[ProtectionOptions]] = WPLReplayOptions
    options: WPLReplayOptions
