"""Novelty search based architecture selection: the loss of an archive of diverse earlier models, trained along."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from forgetless.errors import InputError
from forgetless.protection.base import Decisions, Evidence, Loss, Protection


class Member(NamedTuple):
    """An earlier model in the archive: what tells it from others, and what makes its loss at the present weights."""

    decisions: Decisions
    loss_of: Callable[[], Loss]


class NSAS(Protection):
    """Trains an archive of earlier models along with the present one.

        L(θ) + α/M Σ_m L_m(θ)

    L is the loss of the present model, L_m that of one of up to M earlier ones, on the same batch and at the present
    weights. Its gradient counts, so that the shared weights move where the archived models get better, too; nothing is
    drawn back to an anchor. Every weight of theirs that the optimizer holds is trained along. A model of the archive
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

    Args:
        shared_parameters: The weights that several models use.
        alpha: Strength α.
        archive_size: M, at least 1.
        restore: Makes the loss of an earlier model from its decisions; needed by `load_state_dict` only, because a
            state has no functions in it.

    Raises:
        InputError: If `archive_size` is below 1.
    """

    strength: ClassVar[str | None] = "nsas_alpha"
    options: ClassVar[tuple[str, ...]] = ("archive_size", "restore")

    def __init__(
        self,
        shared_parameters: Iterable[Tensor],
        alpha: float = 1.0,
        *,
        archive_size: int = 8,
        restore: Callable[[Decisions], Loss] | None = None,
    ) -> None:
        super().__init__(shared_parameters, alpha)
        if archive_size < 1:
            raise InputError(f"Expected archive_size to be at least 1, but got {archive_size}.")
        self.archive_size = archive_size
        self._restore = restore
        self._archive: list[Member] = []
        self._losses: list[Loss] = []  # of the archive, while a model trains

    @property
    def archive(self) -> list[Decisions]:
        """The decisions of the archived models, from the oldest to the newest."""
        return [member.decisions for member in self._archive]

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
        if self.alpha == 0 or not self._losses:
            return None
        devices = {parameter.device for parameter in self.shared_parameters if parameter.is_cuda}
        with torch.random.fork_rng(devices):
            losses = [loss(batch) for loss in self._losses]
        finite = [loss for loss in losses if torch.isfinite(loss)]
        return self.alpha * torch.stack(finite).mean() if finite else None

    def consolidate(self, model: nn.Module, evidence: Evidence) -> None:  # noqa: ARG002
        """Take the model into the archive, and let the least novel one go if there are too many."""
        new = Member(tuple(evidence.decisions), evidence.loss_of)
        others = [member for member in self._archive if member.decisions != new.decisions or not new.decisions]
        self._archive = [*others, new]
        if len(self._archive) > self.archive_size:
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
            InputError: If there are archived models and no `restore` was given to the constructor.
        """
        archive = [tuple(decisions) for decisions in state["archive"]]
        if archive and self._restore is None:
            raise InputError(
                f"Expected a way to restore the losses of {len(archive)} archived models, but got none. Pass restore=."
            )
        self._archive = [Member(decisions, partial(self._restored, decisions)) for decisions in archive]

    def _restored(self, decisions: Decisions) -> Loss:
        assert self._restore is not None
        return self._restore(decisions)


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
