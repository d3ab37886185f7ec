"""Images to classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from forgetless.data.named import IMAGE_DATA
from forgetless.registry import Registry
from forgetless.tasks._classification import Classification
from forgetless.tasks.base import TASKS, SplitName, TaskOptions, bound, sha256_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from forgetless.data.splits import ImageData
    from forgetless.supernet import Supernet
    from forgetless.tasks.base import Batch

EVALUATION_IMAGES = 1000
"""Images in a batch of `ImageClassification.batches`, by default."""

# Images that an architecture's batch statistics are computed from.
_RECALIBRATION_IMAGES = 500


@dataclass(frozen=True, kw_only=True)
class ImageOptions(TaskOptions):
    """Options of image classification.

    Attributes:
        augment: Shift and mirror training images.
    """

    augment: bool = False


@TASKS.register
class ImageClassification(Classification):
    """Images to classes, with cross entropy as the loss and 1 − accuracy as the error.

    Args:
        data: Named, disjoint splits.
        batch_size: Training examples per batch, at most all there are.
        device: Where the data is kept; all splits are moved there at once.
        augment: Shift training images by up to an eighth of their size and mirror half of them, anew each time.
    """

    name: ClassVar[str] = "images"
    Options: ClassVar[type[TaskOptions]] = ImageOptions
    data_sets: ClassVar[Registry[Any]] = IMAGE_DATA
    default_data: ClassVar[str] = "digits"
    error_unit: ClassVar[str] = "fraction of images"
    data: ImageData

    def __init__(
        self, data: ImageData, batch_size: int, device: torch.device | str = "cpu", *, augment: bool = False
    ) -> None:
        from forgetless.data.splits import ImageSplit

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

    @classmethod
    def load(
        cls, data: str, data_dir: str | Path | None, options: Any, *, batch_size: int, device: torch.device | str
    ) -> Self:
        """Images by name or path; see `forgetless.data.load_images`."""
        from forgetless.data.images import load_images

        return cls(load_images(data, data_dir), batch_size, device, augment=options.augment)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.data.image_shape

    def training_batches(self, num_batches: int, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """Shuffled passes over the training split; the last incomplete batch of a pass is dropped.

        Args:
            num_batches: How many batches.
            generator: Draws the order of each pass (on the CPU).
            start: How many batches to pass over.

        Yields:
            Images (batch, C, H, W) and labels (batch,).
        """
        import torch

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
                    from forgetless.data.images import random_crop_and_flip

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
        import torch

        images, labels = self._splits[split].images, self._splits[split].labels
        yield from zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True)

    def digest(self) -> str:
        """SHA-256 of images and labels of all splits."""
        images = {f"{name} images": split.images for name, split in self._splits.items()}
        return sha256_of(images | {f"{name} labels": split.labels for name, split in self._splits.items()})

    def weighted_loss(self, model: Any, architecture: Any, edge_weights: Tensor, number: int) -> Tensor:
        """The mean loss on one batch of the reward split, as large as a training batch.

        What is left over at the split's end is not taken. In training mode, as when the shared weights train: a
        supernet with batch normalisation takes the batch's own statistics, and of a few images these are noise.

        Args:
            model: A supernet.
            architecture: Its architecture.
            edge_weights: One for each edge.
            number: Of the batch; they come over and over.
        """
        batches = list(self.batches("reward", self.batch_size))
        # The split may be smaller than a batch.
        batches = [batch for batch in batches if len(batch[1]) == self.batch_size] or batches
        images, labels = batches[number % len(batches)]
        model.train()
        return self.loss(model(images, architecture, edge_weights.to(images.device)), labels)

    def _logits_of(self, model: nn.Module, architecture: Any) -> Callable[[Tensor], Tensor]:
        """A supernet with batch normalisation is recalibrated, on the first 500 training images."""
        import torch

        most = getattr(model, "inputs_at_a_time", None)
        if architecture is not None:
            first = self._splits["train"].images[:_RECALIBRATION_IMAGES]
            cast("Supernet[Any]", model).recalibrate(architecture, torch.split(first, most or len(first)))
        forward = bound(model, architecture)
        return lambda images: torch.cat([forward(part) for part in torch.split(images, most or len(images))])
