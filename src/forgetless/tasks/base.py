"""What a model is trained for: batches, a loss, and an error with a name and a unit.

A model is a module called with inputs, or a supernet called with inputs and one of its architectures; the tasks take
either, with `architecture=None` for the former.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar

from forgetless.configuration import Options
from forgetless.errors import InputError
from forgetless.registry import Kind, Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    Batch = tuple[Tensor, Tensor]

SplitName = Literal["train", "importance", "validation", "reward", "forgetting", "test"]
"""A split; `reward` and `forgetting` are the first and second half of `validation`, for searches that need both."""

Model = TypeVar("Model", bound="nn.Module")

TASKS: Registry[type[Task[Any]]] = Registry("task", "forgetless.tasks")
"""Every kind of task, by name."""


@dataclass(frozen=True, kw_only=True)
class TaskOptions(Options):
    """Options of a task; those of one without any."""

    registry: ClassVar[Registry[Any]] = TASKS


@dataclass(frozen=True)
class Unit:
    """How the errors of a search are written.

    Attributes:
        name: Such as `nats per token`.
        scale: Times the recorded number.
        decimals: Digits after the point.
        error: What an error is, without its unit.
        reward: What a reward is.
        absolute: What an error is in, as opposed to a difference of errors.
    """

    name: str
    scale: float
    decimals: int
    error: str
    reward: str
    absolute: str = ""

    def text(self, value: float, more: int = 0) -> str:
        """A number in this unit, with a real minus sign and never a negative zero.

        Args:
            value: As recorded.
            more: Additional digits.

        >>> unit = Unit("points", 100.0, 1, "error", "accuracy")
        >>> unit.text(0.0123), unit.text(-0.5), unit.text(-1e-6)
        ('1.2', '−50.0', '0.0')
        """
        return decimal(self.scale * value, self.decimals + more)

    def amount(self, value: float) -> str:
        """The same with up to two more digits where it would read as zero."""
        return self.text(value, next((more for more in (0, 1, 2) if float(self.text(abs(value), more))), 0))


def decimal(value: float, decimals: int) -> str:
    """A number with so many digits after the point, a real minus sign, and never a negative zero."""
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


class BatchLoss:
    """The loss of successive training batches of one model.

    Args:
        loss: (batch, state) → (loss, state of the next batch).

    Attributes:
        state: What the next batch begins with; None at the start. Who goes on with a training later sets it.
    """

    def __init__(self, loss: Callable[[Batch, Tensor | None], tuple[Tensor, Tensor | None]]) -> None:
        self._loss = loss
        self.state: Tensor | None = None

    def __call__(self, batch: Batch) -> Tensor:
        """The loss of the next batch, a scalar that is a mean over its predictions."""
        value, self.state = self._loss(batch, self.state)
        return value


class Task(Kind, ABC, Generic[Model]):
    """Batches, loss and error of one data set.

    Attributes:
        name: What spaces and files call it.
        Options: The class of its options.
        data_sets: The data sets that it has by name.
        default_data: The one of them that is used where none is named.
        error_name: What `error` measures.
        error_unit: Its unit.
        unit: How its errors are written.
        loss_score: What a reward of the loss is, in words.
        fits_like: The task whose defaults (such as strengths of protections) fit this one, where it has none of its
            own; None if there is none.
        data: Its splits.
        batch_size: Training examples per batch.
    """

    name: ClassVar[str]
    Options: ClassVar[type[TaskOptions]]
    data_sets: ClassVar[Registry[Any]]
    default_data: ClassVar[str]
    error_name: ClassVar[str]
    error_unit: ClassVar[str]
    unit: ClassVar[Unit]
    loss_score: ClassVar[str] = "exp(−loss)"
    fits_like: ClassVar[str | None] = None
    data: Any
    batch_size: int

    @classmethod
    @abstractmethod
    def load(
        cls, data: str, data_dir: str | Path | None, options: Any, *, batch_size: int, device: torch.device | str
    ) -> Self:
        """The task on a data set.

        Args:
            data: Its name, or a path.
            data_dir: Where named data lies.
            options: Of this kind of task.
            batch_size: Training examples per batch.
            device: Where the data is kept.

        Raises:
            InputError: If the data is missing or damaged, or does not fit the options.
        """

    @abstractmethod
    def training_batches(self, num_batches: int, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """The training batches number `start`, `start` + 1, … of the endless sequence that a generator decides.

        Args:
            num_batches: How many.
            generator: In the state that the sequence begins with; on the CPU.
            start: How many batches of the sequence to pass over.
        """

    @abstractmethod
    def batches(self, split: SplitName) -> Iterator[Batch]:
        """One pass over a split in its own order.

        Args:
            split: Its name.
        """

    @abstractmethod
    def loss_of(self, model: Model, architecture: Any = None) -> BatchLoss:
        """The loss of successive training batches, in nats per prediction.

        Args:
            model: A module or supernet.
            architecture: The supernet's architecture.

        Returns:
            A function of a batch; it may carry a state from batch to batch.
        """

    @abstractmethod
    def error(self, model: Model, split: SplitName, architecture: Any = None, num_batches: int | None = None) -> float:
        """The error on a split, in eval mode, gradients off; the model's mode is restored.

        Args:
            model: A module or supernet.
            split: Its name.
            architecture: The supernet's architecture.
            num_batches: Only the first so many batches; all if None.
        """

    @staticmethod
    @abstractmethod
    def loss(outputs: Any, targets: Tensor) -> Tensor:
        """The mean loss of a batch, in nats per prediction.

        Args:
            outputs: Of the model.
            targets: Of the batch.
        """

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """How many numbers a model gives per example."""

    @property
    @abstractmethod
    def error_of_guessing(self) -> float:
        """The error of a model that knows nothing."""

    @property
    def has_one_batch(self) -> bool:
        """Whether every training batch is the whole training split: gradients of batches then do not vary."""
        return False

    @property
    def largest_error(self) -> float:
        """An error above it is worse than guessing, as of a model that diverged; infinite where chance does that."""
        return math.inf

    @property
    def diverged_above(self) -> float:
        """Errors above it count as diverged in a search."""
        return math.inf

    def reward(self, error: float) -> float:
        """What a strategy is told of an error, larger is better.

        Args:
            error: As `error` gives it; what is not finite gives NaN.
        """
        return -error

    def held_out_loss(
        self,
        model: Model,  # noqa: ARG002
        split: SplitName,  # noqa: ARG002
        architecture: Any = None,  # noqa: ARG002
        num_batches: int | None = None,  # noqa: ARG002
    ) -> float:
        """The mean loss on a split, in nats per prediction, measured as `error` is.

        Args:
            model: A module or supernet.
            split: Its name.
            architecture: The supernet's architecture.
            num_batches: Only the first so many batches; all if None.

        Raises:
            InputError: If the task has none.
        """
        raise InputError(f"Expected a task with a loss to score by, but {self.name} has none. Score by the error.")

    def reward_of_loss(self, loss: float) -> float:
        """What a strategy is told of a loss: exp(−loss), in (0, 1], the geometric mean of the targets' probabilities.

        Args:
            loss: As `held_out_loss` gives it; what is not finite gives NaN.
        """
        return math.exp(-loss) if math.isfinite(loss) else math.nan

    def published_error(self, model: Model, split: SplitName, architecture: Any = None) -> float:
        """The error as it is published, which may be measured otherwise than `error` and more slowly.

        Args:
            model: A module or supernet.
            split: Its name.
            architecture: The supernet's architecture.
        """
        return self.error(model, split, architecture)

    def weighted_loss(self, model: Any, architecture: Any, edge_weights: Tensor, number: int) -> Tensor:  # noqa: ARG002
        """The mean loss of an architecture with a weight for each edge on a batch of the reward split.

        Args:
            model: A supernet that takes such weights; it is left in training mode.
            architecture: Its architecture.
            edge_weights: One for each edge.
            number: Of the batch; they come over and over.

        Raises:
            InputError: If the task has none.
        """
        raise InputError(f"Expected a task with a loss by edges, but {self.name} has none. Choose another strategy.")

    @classmethod
    def in_words(cls, error: float) -> str:
        """An error in a progress line.

        Args:
            error: As `error` gives it.
        """
        return f"{cls.error_name} {error:.3f}"

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the data in all its splits, in hexadecimal: equal where a training sees the same."""


def sha256_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors by name, in hexadecimal."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it the model is in eval mode, and no gradients are kept."""
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def bound(model: nn.Module, architecture: Any) -> Callable[[Tensor], Any]:
    """The model, or an architecture of it, as a function of inputs."""
    return model if architecture is None else lambda inputs: model(inputs, architecture)
