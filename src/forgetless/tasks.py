"""What a model is trained for: batches, a loss, and an error with a name and a unit.

A model is a module called with inputs, or a supernet called with inputs and one of its architectures; the tasks take
either, with `architecture=None` for the former.
"""

import contextlib
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetless.architecture import Architecture
from forgetless.data.images import ImageData, ImageSplit, random_crop_and_flip
from forgetless.data.text import TextData
from forgetless.errors import InputError
from forgetless.supernets.nas201 import ImageSupernet
from forgetless.supernets.recurrent import RecurrentSupernet

SplitName = Literal["train", "importance", "validation", "reward", "forgetting", "test"]
"""A split; `reward` and `forgetting` are the first and second half of `validation`, for searches that need both."""

Model = TypeVar("Model", bound=nn.Module)
Batch = tuple[Tensor, Tensor]

EVALUATION_IMAGES = 1000
"""Images in a batch of `ImageClassification.batches`, by default."""

# Images that an architecture's batch statistics are computed from.
_RECALIBRATION_IMAGES = 500
# Images that go through a supernet at a time: with more, its activations leave the CPU's cache, at twice the time.
_IMAGES_AT_A_TIME = 250


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


class Task(ABC, Generic[Model]):
    """Batches, loss and error of one data set.

    Attributes:
        error_name: What `error` measures.
        error_unit: Its unit.
        batch_size: Training examples per batch.
    """

    error_name: ClassVar[str]
    error_unit: ClassVar[str]
    batch_size: int

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

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the data in all its splits, in hexadecimal: equal where a training sees the same."""


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _bound(model: nn.Module, architecture: Architecture | None) -> Callable[[Tensor], Any]:
    return model if architecture is None else lambda inputs: model(inputs, architecture)


class ImageClassification(Task[nn.Module]):
    """Images to classes, with cross entropy as the loss and 1 − accuracy as the error.

    Args:
        data: Named, disjoint splits.
        batch_size: Training examples per batch, at most all there are.
        device: Where the data is kept; all splits are moved there at once.
        augment: Shift training images by up to an eighth of their size and mirror half of them, anew each time.
    """

    error_name: ClassVar[str] = "error"
    error_unit: ClassVar[str] = "fraction of images"

    def __init__(
        self, data: ImageData, batch_size: int, device: torch.device | str = "cpu", *, augment: bool = False
    ) -> None:
        self.data, self.augment = data, augment
        self.batch_size = min(batch_size, len(data.train.labels))
        splits = {
            "train": data.train,
            "importance": data.importance,
            "validation": data.validation,
            "test": data.test,
        }
        self._splits = {name: ImageSplit(s.images.to(device), s.labels.to(device)) for name, s in splits.items()}
        whole = self._splits["validation"]
        half = len(whole.labels) // 2
        self._splits["reward"] = ImageSplit(whole.images[:half], whole.labels[:half])
        self._splits["forgetting"] = ImageSplit(whole.images[half:], whole.labels[half:])

    def training_batches(self, num_batches: int, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """Shuffled passes over the training split; the last incomplete batch of a pass is dropped.

        Args:
            num_batches: How many batches.
            generator: Draws the order of each pass (on the CPU).
            start: How many batches to pass over.

        Yields:
            Images (batch, C, H, W) and labels (batch,).
        """
        split = self._splits["train"]
        size = self.batch_size
        per_pass = len(split.labels) // size
        padding = max(split.images.shape[-2:]) // 8
        for number in range(start + num_batches):
            place = number % per_pass
            if place == 0:
                order = torch.randperm(len(split.labels), generator=generator).to(split.labels.device)
            if number >= start:
                index = order[place * size : (place + 1) * size]
                images = split.images[index]
                if self.augment:
                    # A generator for each batch, so that a batch does not depend on where training was resumed.
                    own = torch.Generator().manual_seed(generator.initial_seed() + number + 1)
                    images = random_crop_and_flip(images, padding, own)
                yield images, split.labels[index]

    def batches(self, split: SplitName, batch_size: int = EVALUATION_IMAGES) -> Iterator[Batch]:
        """One pass over a split in its own order.

        Args:
            split: Its name.
            batch_size: Examples per batch.

        Yields:
            Images and labels.
        """
        images, labels = self._splits[split].images, self._splits[split].labels
        yield from zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True)

    def digest(self) -> str:
        """SHA-256 of images and labels of all splits."""
        images = {f"{name} images": split.images for name, split in self._splits.items()}
        return _sha256(images | {f"{name} labels": split.labels for name, split in self._splits.items()})

    @staticmethod
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy, in nats per image."""
        return F.cross_entropy(logits, labels)

    def loss_of(self, model: nn.Module, architecture: Architecture | None = None) -> BatchLoss:
        """The mean cross entropy of a batch (images, labels)."""
        forward = _bound(model, architecture)
        return BatchLoss(lambda batch, state: (self.loss(forward(batch[0]), batch[1]), state))

    def error(
        self,
        model: nn.Module,
        split: SplitName,
        architecture: Architecture | None = None,
        num_batches: int | None = None,
    ) -> float:
        """Share of a split's images that a model gets wrong, in eval mode.

        A supernet with batch normalisation is recalibrated first, on the first 500 training images.

        Args:
            model: A module or supernet.
            split: Its name.
            architecture: The supernet's architecture.
            num_batches: Only the first so many batches of 1,000; all if None.

        Returns:
            The error in [0, 1]; NaN if a logit is not finite.
        """
        if isinstance(model, ImageSupernet) and architecture is not None:
            first = self._splits["train"].images[:_RECALIBRATION_IMAGES]
            model.recalibrate(architecture, torch.split(first, _IMAGES_AT_A_TIME))
        forward = _bound(model, architecture)
        wrong = seen = 0
        with _evaluating(model):
            for number, (images, labels) in enumerate(self.batches(split)):
                if number == num_batches:
                    break
                size = _IMAGES_AT_A_TIME if isinstance(model, ImageSupernet) else len(images)
                logits = torch.cat([forward(part) for part in torch.split(images, size)])
                if not torch.isfinite(logits).all():
                    return math.nan
                wrong += int((logits.argmax(-1) != labels).sum())
                seen += len(labels)
        return wrong / seen


class LanguageModelling(Task[RecurrentSupernet]):
    """The next word, with cross entropy in nats per token as loss and error.

    A text is laid out in `batch_size` parallel streams and read `num_steps` words at a time.

    Args:
        data: Named, disjoint splits.
        batch_size: B, parallel streams.
        num_steps: T, words per batch and stream: the length of truncated backpropagation, and of one example.
        independent: Draw the places of each training batch at random instead of reading on, so that no batch is
            special because it was read last.
        device: Where the data is kept.

    Raises:
        InputError: If the training text is shorter than one batch, or a held-out text than one chunk.
    """

    error_name: ClassVar[str] = "cross entropy"
    error_unit: ClassVar[str] = "nats per token"

    def __init__(
        self,
        data: TextData,
        batch_size: int,
        num_steps: int,
        *,
        independent: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.data = data
        self.batch_size, self.num_steps, self.independent = batch_size, num_steps, independent
        half = len(data.validation) // 2
        self._texts = {
            name: text.to(device)
            for name, text in {
                "train": data.train,
                "importance": data.importance,
                "validation": data.validation,
                "reward": data.validation[:half],
                "forgetting": data.validation[half:],
                "test": data.test,
            }.items()
        }
        for name, text in self._texts.items():
            needed = (batch_size if name == "train" else 1) * (num_steps + 1) + 1
            if len(text) < needed:
                raise InputError(
                    f"Expected at least {needed} words of {name} text for this batch size and number of steps, but got "
                    f"{len(text)}. Use a longer text or smaller batches."
                )

    def digest(self) -> str:
        """SHA-256 of the words of all splits, as numbers."""
        return _sha256(self._texts)

    def training_batches(self, num_batches: int, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """Successive chunks of every stream, over and over; with `independent`, chunks from random places.

        Args:
            num_batches: How many batches.
            generator: Draws the places if `independent`.
            start: How many batches to pass over.

        Yields:
            Words and the words after them, (B, T) each.
        """
        text = self._texts["train"]
        if self.independent:
            places = torch.randint(
                len(text) - self.num_steps, (start + num_batches, self.batch_size), generator=generator
            )
            steps = torch.arange(self.num_steps)
            for row in places[start:]:
                index = (row.unsqueeze(1) + steps).to(text.device)
                yield text[index], text[index + 1]
            return
        streams = self._streams("train", self.batch_size)
        per_pass = (streams.shape[1] - 1) // self.num_steps
        for number in range(start, start + num_batches):
            place = number % per_pass * self.num_steps
            yield streams[:, place : place + self.num_steps], streams[:, place + 1 : place + self.num_steps + 1]

    def batches(self, split: SplitName) -> Iterator[Batch]:
        """One pass over a split in as many streams as it fills, up to B; the rest of less than a stream is dropped.

        Args:
            split: Its name.

        Yields:
            Words and the words after them, (streams, ≤ T) each, in reading order.
        """
        longest = (len(self._texts[split]) - 1) // self.num_steps
        streams = self._streams(split, max(1, min(self.batch_size, longest)))
        for place in range(0, streams.shape[1] - 1, self.num_steps):
            chunk = streams[:, place : place + self.num_steps + 1]
            yield chunk[:, :-1], chunk[:, 1:]

    def _streams(self, split: SplitName, number: int) -> Tensor:
        text = self._texts[split]
        length = len(text) // number
        return text[: number * length].view(number, length)

    def loss_of(self, model: RecurrentSupernet, architecture: Any = None) -> BatchLoss:
        """The mean cross entropy of a batch (words, next words), the state carried from batch to batch.

        The state starts at zero, is detached between batches, and is not carried if batches are independent.
        """

        def loss(batch: Batch, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
            value, last = model.loss(*batch, architecture, state)
            return value, None if self.independent else last.detach()

        return BatchLoss(loss)

    def error(
        self, model: RecurrentSupernet, split: SplitName, architecture: Any = None, num_batches: int | None = None
    ) -> float:
        """Cross entropy in nats per token, in eval mode, with the state carried along each stream.

        Args:
            model: The supernet.
            split: Its name.
            architecture: Its architecture.
            num_batches: Only the first so many batches; all if None.

        Returns:
            Mean over tokens; not finite if the architecture diverged.
        """
        total, seen = 0.0, 0
        state: Tensor | None = None
        with _evaluating(model):
            for number, (words, targets) in enumerate(self.batches(split)):
                if number == num_batches:
                    break
                value, state = model.loss(words, targets, architecture, state)
                total += float(value) * targets.numel()
                seen += targets.numel()
        return total / seen

    def cross_entropy_of_text(self, model: RecurrentSupernet, split: SplitName, architecture: Any) -> float:
        """Cross entropy in nats per token over a whole split as one stream, whatever the batch size: what is published.

        Args:
            model: The supernet.
            split: Its name.
            architecture: Its architecture.

        Returns:
            Mean over every token but the first, which nothing precedes.
        """
        text = self._texts[split].unsqueeze(0)
        total = 0.0
        state: Tensor | None = None
        with _evaluating(model):
            for place in range(0, text.shape[1] - 1, self.num_steps):
                chunk = text[:, place : place + self.num_steps + 1]
                value, state = model.loss(chunk[:, :-1], chunk[:, 1:], architecture, state)
                total += float(value) * (chunk.shape[1] - 1)
        return total / (text.shape[1] - 1)
