"""What a budget says: how much the old loss may rise, on what it is measured, and what holds it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import Tensor, nn
from torch.optim import Optimizer

from forgetless.errors import InputError, expect_one_of
from forgetless.importance import Batch, LossFunction

if TYPE_CHECKING:
    from forgetless.budget.keeper import Keeper

Hold = Literal["replay", "plasticity", "interpolation"]
"""What holds the old loss while a model is trained."""


@dataclass(frozen=True)
class Budget:
    """How much worse a model may get at what it knew while it is fine-tuned on something new.

        minimise L_new(θ)   subject to   L_old(θ) − L_old(θ̂) ≤ nats

    The old data are not needed: on text that the old model writes, the loss grows by the relative entropy KL(p̂ ‖ p) of
    the old model and the present one, per token. A quarter of these texts is for measuring only. While the model
    trains, `hold` keeps the increase near the budget. At the end, `Keeper.finish` goes back along the straight path to
    θ̂ as far as the upper end of a 95 % interval of the increase needs to be within.

    | hold | while training | cost of a step |
    |---|---|---|
    | `replay` | λ times the increase on own texts is added to the loss, with λ found | a pass of a batch of own texts |
    | `plasticity` | weights are drawn back by their Fisher information, `WeightPlasticity(tolerance=...)` | little |
    | `interpolation` | nothing: the way back does it all | none |

    Source: the own texts are those of Shin et al. 2017 (arXiv:1705.08690), the relative entropy to an old model that of
    Li and Hoiem 2016 (arXiv:1606.09282), the path that of Wortsman et al. 2022 (arXiv:2109.01903). New is that λ and
    the way back follow one number that the user gives.

    Attributes:
        nats: What the old loss per target may rise by, above 0. It holds for what the old model would write; real old
            text lost less than that in most runs (see docs/budget.md).
        on: `own-samples`; own texts as integers (texts, tokens); or old batches, pairs (inputs, targets).
        hold: See above.
        by_targets: Whether old batches are measured and held by the loss of their targets. Otherwise it is by the
            relative entropy to the old model on their inputs, as with own texts: for inputs without right targets, and
            with less noise.
        samples: Own texts, where there are none yet.
        sample_length: Tokens of each.
        batch_size: Own texts at a time.
        measure_every: Steps from one measurement to the next. Each takes a quarter of what there is for measuring.
        seed: Of own texts and of the order in which they are replayed.

    Raises:
        InputError: If `nats` is not finite and above 0, or another option is out of its range.

    >>> budget = Budget(0.05)  # then keep = budget.attach(model, optimizer); train as usual; keep.finish()
    >>> budget.hold
    'replay'
    """

    nats: float
    on: Literal["own-samples"] | Tensor | Iterable[Batch] = field(default="own-samples", repr=False)
    hold: Hold = "replay"
    by_targets: bool = True
    samples: int = 256
    sample_length: int = 128
    batch_size: int = 8
    measure_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.nats, (int, float)) and math.isfinite(self.nats) and self.nats > 0):
            raise InputError(
                f"Expected a budget in nats that is finite and above 0, but got {self.nats}. It is what the old loss "
                "may rise by; freeze the weights where that is nothing."
            )
        expect_one_of("hold", self.hold, get_args(Hold))
        for name, least in (("samples", 2), ("sample_length", 2), ("batch_size", 1), ("measure_every", 1)):
            if getattr(self, name) < least:
                raise InputError(f"Expected {name} of at least {least}, but got {getattr(self, name)}.")
        if isinstance(self.on, str) and self.on != "own-samples":
            raise InputError(
                "Expected on to be 'own-samples', own texts as integers (texts, tokens), or old batches, but got "
                f"{self.on!r}."
            )

    def attach(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        prompts: int | Tensor | None = None,
        context: int | None = None,
        loss_fn: LossFunction | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> "Keeper":
        """Take the model as it is for what is to be kept, and follow the optimizer's steps from now on.

        The loop stays as it is; gradients of the old loss are added right before each step, after clipping, once
        however many backward passes there were. `Keeper.finish` after the last step makes the budget hold.

        Args:
            model: Before it is fine-tuned, on its device.
            optimizer: Of its weights, or several. In a wrapper, the one inside is followed.
            prompts: Where own texts begin: a token, or tokens (P, s) that are taken in turn. None: the model's first
                token, where it has a `config` that says which.
            context: Tokens that the model can read at a time; own texts are cut into as many. None: all.
            loss_fn: Maps (outputs, targets) of old batches to one loss per target, or their mean. None: cross entropy.
            state: From `Keeper.state_dict`, of a training that goes on; the old model and its texts are taken from it.

        Returns:
            What keeps the budget; keep it until the end.

        Raises:
            InputError: If there is nothing to hold, the model cannot write texts, the old loss is not finite or below
                the budget, weights are in shards, or an earlier budget of the model was not finished.
        """
        from forgetless.budget.keeper import Keeper

        return Keeper(self, model, optimizer, prompts=prompts, context=context, loss_fn=loss_fn, state=state)
