"""What all classification has in common: one label per example."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.tasks.base import BatchLoss, SplitName, Task, Unit, bound, evaluating

if TYPE_CHECKING:
    from torch import Tensor, nn


class Classification(Task["nn.Module"]):
    """Examples to classes, with cross entropy as the loss and 1 − accuracy as the error.

    Attributes:
        data: Its splits; it knows `num_classes`.
    """

    error_name: ClassVar[str] = "error"
    unit: ClassVar[Unit] = Unit("points of accuracy", 100.0, 1, "error", "accuracy", "%")

    @property
    def num_classes(self) -> int:
        """K."""
        found: int = self.data.num_classes
        return found

    @property
    def num_outputs(self) -> int:
        """A logit for each class."""
        return self.num_classes

    @property
    def error_of_guessing(self) -> float:
        """1 − 1/K."""
        return 1 - 1 / self.num_classes

    def reward(self, error: float) -> float:
        """Accuracy.

        Args:
            error: 1 − accuracy.
        """
        return 1 - error

    @classmethod
    def in_words(cls, error: float) -> str:
        """As accuracy in per cent.

        Args:
            error: 1 − accuracy.
        """
        return f"accuracy {100 * (1 - error):.1f} %"

    @staticmethod
    def loss(outputs: Any, targets: Tensor) -> Tensor:
        """Mean cross entropy, in nats per example.

        Args:
            outputs: Logits (batch, K).
            targets: Classes (batch,).
        """
        import torch.nn.functional as F

        return F.cross_entropy(outputs, targets)

    def loss_of(self, model: nn.Module, architecture: Any = None) -> BatchLoss:
        """The mean cross entropy of a batch (inputs, labels)."""
        forward = bound(model, architecture)
        return BatchLoss(lambda batch, state: (self.loss(forward(batch[0]), batch[1]), state))

    def error(
        self, model: nn.Module, split: SplitName, architecture: Any = None, num_batches: int | None = None
    ) -> float:
        """Share of a split's examples that a model gets wrong, in eval mode.

        A supernet with batch normalisation of examples is recalibrated first.

        Args:
            model: A module or supernet.
            split: Its name.
            architecture: The supernet's architecture.
            num_batches: Only the first so many batches of 1,000; all if None.

        Returns:
            The error in [0, 1]; NaN if a logit is not finite.
        """

        def wrong(logits: Tensor, labels: Tensor) -> int:
            return int((logits.argmax(-1) != labels).sum())

        return self._mean(wrong, model, split, architecture, num_batches)

    def held_out_loss(
        self, model: nn.Module, split: SplitName, architecture: Any = None, num_batches: int | None = None
    ) -> float:
        """Mean cross entropy of a split's examples, in nats, measured as `error` is; NaN if a logit is not finite."""
        import torch.nn.functional as F

        def nats(logits: Tensor, labels: Tensor) -> float:
            return float(F.cross_entropy(logits, labels, reduction="sum"))

        return self._mean(nats, model, split, architecture, num_batches)

    def _mean(
        self,
        total_of: Callable[[Tensor, Tensor], float],
        model: nn.Module,
        split: SplitName,
        architecture: Any,
        num_batches: int | None,
    ) -> float:
        """The mean over a split's examples of what is told of logits and labels of a batch, in eval mode."""
        import torch

        logits_of = self._logits_of(model, architecture)
        total, seen = 0.0, 0
        with evaluating(model):
            for number, (inputs, labels) in enumerate(self.batches(split)):
                if number == num_batches:
                    break
                logits = logits_of(inputs)
                if not torch.isfinite(logits).all():
                    return math.nan
                total += total_of(logits, labels)
                seen += len(labels)
        return total / seen

    def _logits_of(self, model: nn.Module, architecture: Any) -> Callable[[Tensor], Tensor]:
        """What gives the logits of a batch of a split; the model is made ready to be measured."""
        return bound(model, architecture)
