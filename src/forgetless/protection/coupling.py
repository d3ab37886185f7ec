"""The coupled Laplace form as a protection; `forgetless.coupled` has the mathematics."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from forgetless.configuration import fitting
from forgetless.protection.base import PROTECTIONS, Evidence, Protection, ProtectionOptions, StrengthOptions

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

CouplingRule = Literal["sum", "ema", "replace"]


@dataclass(frozen=True, kw_only=True)
class CouplingOptions(StrengthOptions):
    """Options of the coupled form.

    Attributes:
        strength: α, at least 0; 1 is the posterior of two models of equally many examples, which lets the first forget
            what its own weights could be refitted for.
        prior: λ, above 0: the prior's precision per example, as a weight decay.
        num_examples: N, held-out examples per model, at least 1. N · (number of outputs) rows, each as long as the
            model's weights, are in memory while a model is consolidated.
        num_rows: R, rows kept for all earlier models together, at least 1, each as long as the shared weights.
        rule: How Ω accumulates over models.
        decay: Of the rule `ema`, in [0, 1]: the share of the old rows that stays.
    """

    prior: float = 1e-3
    num_examples: int = fitting()
    num_rows: int = 50
    rule: CouplingRule = fitting()
    decay: float = 0.9

    fits: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"strength": 1.0, "num_examples": 50, "rule": "sum"},
        "two-model": {"strength": 1e4},
        "search": {"num_examples": 20, "rule": "ema"},
        "search on text": {"strength": 1e2},
        "search on images": {"strength": 1e3},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_positive("prior")
        self.expect_at_least(1, "num_examples", "num_rows")
        self.expect_share("decay")


@PROTECTIONS.register
class Coupling(Protection):
    """As `wpl` with the full curvature in place of its diagonal, the earlier models' own weights refitted.

        α/2 vᵀ Ω v,    v = θ_s − θ̂,    Ω = H_ss − H_s1 H₁₁⁻¹ H_1s,    H = GᵀG + λ I

    Where a private weight of an earlier model can make up for a change of shared ones, that change is free. GᵀG is the
    Gauss-Newton curvature of the earlier model's mean loss on held-out examples; `forgetless.coupled` has the
    derivation, the low rank and the step.

    Source: Benyahia et al. 2019, arXiv:1902.08232, section 3. Their eq. 8 replaces Ω by the diagonal of an empirical
    Fisher and leaves out H_s1 H₁₁⁻¹ H_1s; here neither is done.
    """

    name: ClassVar[str] = "coupling"
    label: ClassVar[str] = "coupled curvature"
    colour: ClassVar[str | None] = "#56B4E9"
    Options: ClassVar[type[ProtectionOptions]] = CouplingOptions
    uses_examples: ClassVar[bool] = True
    options: CouplingOptions

    def _set_up(self) -> None:
        from forgetless.coupled import CoupledPlasticity

        o = self.options
        self.coupled = CoupledPlasticity(
            self.shared_parameters, o.strength, prior=o.prior, num_rows=o.num_rows, rule=o.rule, decay=o.decay
        )

    @property
    def strength(self) -> float:
        """α; may be set at any time."""
        return self.coupled.alpha

    @strength.setter
    def strength(self, value: float) -> None:
        self.coupled.alpha = value

    @classmethod
    def held_copies(cls, options: Any, num_outputs: float) -> float:
        """The anchor; rows kept, the columns of those that move, and new ones, once more where all are put together."""
        from forgetless.curvature import MOST_OUTPUTS

        new = options.num_examples * (num_outputs if num_outputs <= MOST_OUTPUTS else 1)
        return float(1 + 2 * (options.num_rows + new))

    @classmethod
    def sizes(cls, options: Any) -> dict[str, object]:
        """The rows."""
        return {"rows of coupling": options.num_rows}

    def during(self, optimizer: Optimizer) -> contextlib.AbstractContextManager[None]:
        """A context in which each step of the optimizer is followed by the proximal step."""
        return self.coupled.during(optimizer)

    def consolidate(self, model: nn.Module, evidence: Evidence) -> None:
        """Fold the model's factor on held-out examples into the stored one, and anchor the weights it used."""
        examples = ((x[n : n + 1], y[n : n + 1]) for x, y in evidence.batches() for n in range(len(y)))
        self.coupled.consolidate(model, itertools.islice(examples, self.options.num_examples), evidence.loss)

    def penalty(self) -> float:
        """α/2 vᵀ Ω v at the present weights."""
        return self.coupled.penalty()

    def reset(self) -> None:
        """Forget factor and anchors."""
        self.coupled.reset()

    def state_dict(self) -> dict[str, Any]:
        """Factor, anchors, and how many models were consolidated."""
        return self.coupled.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.coupled.load_state_dict(state)
