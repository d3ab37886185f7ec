"""A protection of one's own: large weights are drawn back more strongly than small ones."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from forgetless.configuration import option
from forgetless.protection import PROTECTIONS, Evidence
from forgetless.protection.quadratic import QuadraticOptions, QuadraticProtection


@dataclass(frozen=True, kw_only=True)
class MagnitudeOptions(QuadraticOptions):
    power: float = option(1.0, help="p in the importance |θ|^p, above 0.")

    fits = {"": {"strength": 10.0}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_positive("power")


@PROTECTIONS.register
class Magnitude(QuadraticProtection):
    """Draws each shared weight back with the importance |θ|^p of where the earlier model left it."""

    name = "magnitude"
    label = "magnitude"
    Options = MagnitudeOptions

    def importance(self, model: nn.Module, evidence: Evidence) -> Mapping[str, Tensor]:
        """|θ|^p."""
        return {name: weight.detach().abs() ** self.options.power for name, weight in model.named_parameters()}
