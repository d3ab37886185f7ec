"""What all classification has in common: one label per example."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.tasks.base import BatchLoss, Task, Unit, bound

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
