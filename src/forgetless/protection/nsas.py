"""Novelty search based architecture selection: replays the loss of an archive of diverse earlier models."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from forgetless.protection.base import PROTECTIONS, Decisions, Evidence, Protection, ProtectionOptions, StrengthOptions
from forgetless.protection.rehearsal import rehearsed_loss

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from forgetless.protection.base import Loss


@dataclass(frozen=True, kw_only=True)
class NSASOptions(StrengthOptions):
    """Options of novelty search based architecture selection.

    Attributes:
        strength: Weight α of the archive's mean loss, at least 0; 1 is the paper's.
        archive_size: How many earlier models the archive holds, at least 1; 8 is the paper's number.
    """

    archive_size: int = 8

    fits: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {"strength": 1.0}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(1, "archive_size")


class Member(NamedTuple):
    """An earlier model in the archive: what tells it from others, and what makes its loss at the present weights."""

    decisions: Decisions
    loss_of: Callable[[], Loss]


@PROTECTIONS.register
class NSAS(Protection):
    """Replays an archive of earlier models beside the present one.

        L(θ) + α/M Σ_m L_m(θ)

    L is the loss of the present model, L_m that of one of up to M earlier ones, on the same batch and at the present
    weights. Its gradient counts, so that the shared weights move where the archived models get better, too; nothing is
    drawn back to an anchor. Every weight of theirs that the optimizer holds is trained, too. A model of the archive
    whose loss on a batch is not finite is left out of it. Each further model of the archive costs another forward and
    backward pass per step.

    The archive is chosen by greedy novelty search: once it is full, of the M + 1 candidates that one leaves which is
    least novel, by its smallest Hamming distance between decisions to any other; of equals the oldest. A model that is
    trained again takes its old place's turn. Models in a chain are told apart by their place alone and are equally
    novel: the newest stay.

    Source: Zhang et al., Overcoming Multi-Model Forgetting in One-Shot NAS with Diversity Maximization, CVPR 2020. The
    released code has M = 8 and trains 0.5 L + 0.5 mean L_m: (1 − ε) L + ε mean L_m with ε = 0.5, which is ours at α =
    ε/(1 − ε) = 1 but for the loss's scale. It takes the archive's loss as a number (`.item()`) in several scripts, so
    that its gradient never reaches the weights; here it does. It replaces the archived architecture most like the
    present one by the most novel of the 50 newest, with 1 − (share of equal operations) averaged over the 10 nearest as
    novelty.
    """

    name: ClassVar[str] = "nsas"
    label: ClassVar[str] = "archive (NSAS)"
    colour: ClassVar[str | None] = "#E7298A"
    Options: ClassVar[type[ProtectionOptions]] = NSASOptions
    options: NSASOptions

    def _set_up(self) -> None:
        self._archive: list[Member] = []
        self._losses: list[Loss] = []  # of the archive, while a model trains

    @property
    def archive(self) -> list[Decisions]:
        """The decisions of the archived models, from the oldest to the newest."""
        return [member.decisions for member in self._archive]

    @classmethod
    def passes(cls, options: Any) -> float:  # noqa: ARG003
        """A forward and backward pass of the archived model beside that of the present one."""
        return 2.0

    @contextlib.contextmanager
    def during(self, optimizer: Optimizer) -> Iterator[None]:  # noqa: ARG002
        """A context in which `extra_loss` follows the archived models, each with a state of its own."""
        self._losses = [member.loss_of() for member in self._archive]
        try:
            yield
        finally:
            self._losses = []

    def extra_loss(self, batch: Any) -> Tensor | None:
        """α times the archive's mean loss on a batch; None where there is none.

        What it draws, such as dropout masks, does not advance the random state.

        Args:
            batch: The training batch of the present model.
        """
        return rehearsed_loss(self._losses, batch, self.strength, self.shared_parameters)

    def consolidate(self, model: nn.Module, evidence: Evidence) -> None:  # noqa: ARG002
        """Take the model into the archive, and let the least novel one go if there are too many."""
        new = Member(tuple(evidence.decisions), evidence.loss_of)
        others = [member for member in self._archive if member.decisions != new.decisions or not new.decisions]
        self._archive = [*others, new]
        if len(self._archive) > self.options.archive_size:
            del self._archive[least_novel(self.archive)]

    def reset(self) -> None:
        """Empty the archive."""
        self._archive = []

    def state_dict(self) -> dict[str, Any]:
        """The decisions of the archived models."""
        return {"archive": [list(decisions) for decisions in self.archive]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: From `state_dict`.

        Raises:
            InputError: If there are archived models and no `recall` was given to the constructor.
        """
        archive = [tuple(decisions) for decisions in state["archive"]]
        recall = self._expect_recall(len(archive)) if archive else None
        self._archive = [Member(decisions, partial(_recalled_loss, recall, decisions)) for decisions in archive]


def _recalled_loss(recall: Any, decisions: Decisions) -> Loss:
    _, evidence = recall(decisions)
    loss: Loss = evidence.loss_of()
    return loss


def least_novel(candidates: Sequence[Decisions]) -> int:
    """The place of the candidate whose nearest other is nearest, by Hamming distance; of equals the first.

    Args:
        candidates: At least 2; of different lengths, every place that only one of two has counts as a difference.

    >>> least_novel([(0, 0, 0), (1, 1, 1), (0, 2, 2), (0, 2, 0)])
    0
    """

    def distance(left: Decisions, right: Decisions) -> int:
        return sum(x != y for x, y in zip(left, right, strict=False)) + abs(len(left) - len(right))

    def novelty(i: int) -> int:
        return min(distance(candidates[i], other) for j, other in enumerate(candidates) if j != i)

    return min(range(len(candidates)), key=novelty)
