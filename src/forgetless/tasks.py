"""What a model is trained for: batches, a loss, and an error with a name and a unit."""

from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetless.data.images import ImageData, ImageSplit

SplitName = Literal["train", "importance", "validation", "test"]


class ImageClassification:
    """Images to classes, with cross entropy as the loss and 1 − accuracy as the error.

    Args:
        data: Named, disjoint splits.
        batch_size: Training examples per batch.
        device: Where the data is kept; all splits are moved there at once.
    """

    error_name: ClassVar[str] = "error"
    error_unit: ClassVar[str] = "fraction of examples"

    def __init__(self, data: ImageData, batch_size: int, device: torch.device | str = "cpu") -> None:
        self.data = data
        self.batch_size = batch_size
        self._splits: dict[str, ImageSplit] = {
            name: ImageSplit(split.images.to(device), split.labels.to(device))
            for name, split in (
                ("train", data.train),
                ("importance", data.importance),
                ("validation", data.validation),
                ("test", data.test),
            )
        }

    def training_batches(self, num_batches: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled passes over the training split; the last incomplete batch of a pass is dropped.

        Args:
            num_batches: How many batches.
            generator: Draws the order (on the CPU).

        Yields:
            Images (batch, C, H, W) and labels (batch,).
        """
        split = self._splits["train"]
        size = min(self.batch_size, len(split.labels))
        produced = 0
        while produced < num_batches:
            order = torch.randperm(len(split.labels), generator=generator).to(split.labels.device)
            for start in range(0, len(order) - size + 1, size):
                if produced == num_batches:
                    return
                index = order[start : start + size]
                yield split.images[index], split.labels[index]
                produced += 1

    def batches(self, split: SplitName, batch_size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over a split in its own order.

        Args:
            split: Its name.
            batch_size: Examples per batch.

        Yields:
            Images and labels.
        """
        images, labels = self._splits[split].images, self._splits[split].labels
        yield from zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True)

    @staticmethod
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy, in nats per example."""
        return F.cross_entropy(logits, labels)

    @torch.no_grad()
    def error(self, model: nn.Module | Callable[[Tensor], Tensor], split: SplitName) -> float:
        """Share of a split's examples that a model gets wrong, in eval mode.

        Args:
            model: A module, or a function from images to logits that is in eval mode already.
            split: Its name.

        Returns:
            The error in [0, 1]. A model whose logits are not finite is as wrong as they say.
        """
        was_training = isinstance(model, nn.Module) and model.training
        if isinstance(model, nn.Module):
            model.eval()
        wrong = sum(int((model(images).argmax(-1) != labels).sum()) for images, labels in self.batches(split))
        if isinstance(model, nn.Module):
            model.train(was_training)
        return wrong / len(self._splits[split].labels)
