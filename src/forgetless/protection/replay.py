"""Replay: λ times the loss of earlier models on remembered examples of what they learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.configuration import fitting
from forgetless.errors import InputError
from forgetless.orders import endless_order
from forgetless.protection.base import PROTECTIONS, Decisions, Evidence, ProtectionOptions
from forgetless.protection.rehearsal import Rehearsal, RehearsalOptions, Term

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ReplayOptions(RehearsalOptions):
    """Options of replay.

    Attributes:
        strength: λ, weight of the earlier models' mean loss on remembered examples, at least 0.
        num_targets: Targets (images, words) remembered of each earlier model, at least 1, rounded up to whole batches;
            all that there are if they are fewer.
    """

    num_targets: int = fitting()

    fits: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"strength": 1.0, "num_targets": 10_000},
        "fine-tune": {"num_targets": 100_000},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(1, "num_targets")


@PROTECTIONS.register
class Replay(Rehearsal):
    """Trains on remembered examples of earlier models beside the present one's batches.

        L(θ) + λ/M Σ_m L_m(θ; examples of m)

    L_m is the mean loss per target of an earlier model, at the present weights and in the mode (training, eval) that it
    is in. Its examples are what its evidence has: held-out ones of the data that all learn, or, in a fine-tuning, old
    data, what the old model wrote itself, or new inputs. Examples of another shape than the first, such as a shorter
    last chunk of text, are left out; each chunk is predicted from a zero state. Each step takes as many examples as the
    training batch has. They come over and over, each pass in an order of its own, which is the same in every run.

    Source: Robins 1995, Catastrophic forgetting, rehearsal and pseudorehearsal (Connection Science 7(2)); with examples
    that the model makes itself, Shin et al. 2017, arXiv:1705.08690. There old and new examples are mixed in one loss by
    a share r of new ones, which is ours at λ = (1 − r)/r.
    """

    name: ClassVar[str] = "replay"
    label: ClassVar[str] = "replay"
    colour: ClassVar[str | None] = "#4D9221"
    Options: ClassVar[type[ProtectionOptions]] = ReplayOptions
    uses_examples: ClassVar[bool] = True
    options: ReplayOptions

    @classmethod
    def passes(cls, options: Any) -> float:  # noqa: ARG003
        """A forward and backward pass on remembered examples beside that on the training batch."""
        return 2.0

    def term(self, model: nn.Module, evidence: Evidence) -> Term:
        """The loss of a model on remembered examples.

        Raises:
            InputError: If the evidence has none.
        """
        inputs, targets = remembered(evidence.batches(), self.options.num_targets)
        return _Replayed(tuple(evidence.decisions), model, evidence.loss, inputs, targets)


class _Replayed(Term):
    """The loss of an earlier model on the next of its examples, at each call."""

    def __init__(
        self,
        decisions: Decisions,
        model: nn.Module,
        loss: Callable[[Any, Tensor], Tensor],
        inputs: Tensor,
        targets: Tensor,
    ) -> None:
        super().__init__(decisions)
        self._model, self._loss, self._inputs, self._targets = model, loss, inputs, targets
        self._seen = 0  # examples, over all passes

    def __call__(self, batch: Any) -> Tensor:
        number = min(len(batch[1]), len(self._targets))
        places = endless_order(len(self._targets), self._seen, number).to(self._targets.device)
        self._seen += number
        return self._loss(self._model(self._inputs[places]), self._targets[places])

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._seen = state["seen"]


def remembered(batches: Iterable[tuple[Any, Tensor]], num_targets: int) -> tuple[Tensor, Tensor]:
    """The first batches, in one.

    Args:
        batches: Inputs and targets, with the examples in their first dimension.
        num_targets: Batches are taken until they have so many targets.

    Returns:
        Inputs and targets of all examples that have the shape of the first batch's.

    Raises:
        InputError: If there is no batch.
    """
    import torch

    kept: list[tuple[Tensor, Tensor]] = []
    missing = num_targets
    for inputs, targets in batches:
        if not kept or (inputs.shape[1:], targets.shape[1:]) == tuple(tensor.shape[1:] for tensor in kept[0]):
            kept.append((inputs, targets))
            missing -= targets.numel()
        if missing <= 0:
            break
    if not kept:
        raise InputError("Expected examples of what the earlier model learned, to replay them, but got none.")
    return torch.cat([inputs for inputs, _ in kept]), torch.cat([targets for _, targets in kept])
