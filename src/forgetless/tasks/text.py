"""The next word of a text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from forgetless.data.named import TEXT_DATA
from forgetless.errors import InputError
from forgetless.registry import Registry
from forgetless.tasks.base import TASKS, BatchLoss, SplitName, Task, TaskOptions, Unit, evaluating, sha256_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from forgetless.data.text import TextData
    from forgetless.spaces.recurrent.supernet import RecurrentSupernet
    from forgetless.tasks.base import Batch

REWARD_SCALE = 80.0
"""c of the reward c / perplexity (Pham et al. 2018, section 2.2)."""

_DIVERGED_NATS = 5.0  # above the uniform prediction, log of the vocabulary


@dataclass(frozen=True, kw_only=True)
class TextOptions(TaskOptions):
    """Options of language modelling.

    Attributes:
        num_steps: Words per sequence.
        vocabulary: How many words are known, the most frequent ones; all that the data has if None. Most of a small
            network's time goes into them.
        independent: Draw chunks of text independently instead of reading on.
    """

    num_steps: int = 20
    vocabulary: int | None = None
    independent: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(1, "num_steps")
        self.expect_at_least(3, "vocabulary")


@TASKS.register
class LanguageModelling(Task["RecurrentSupernet"]):
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

    name: ClassVar[str] = "text"
    Options: ClassVar[type[TaskOptions]] = TextOptions
    data_sets: ClassVar[Registry[Any]] = TEXT_DATA
    default_data: ClassVar[str] = "kjv"
    error_name: ClassVar[str] = "cross entropy"
    error_unit: ClassVar[str] = "nats per token"
    unit: ClassVar[Unit] = Unit("nats per token", 1.0, 3, "cross entropy", "80 / perplexity", "nats per token")
    loss_score: ClassVar[str] = unit.reward  # the error is the loss
    data: TextData

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

    @classmethod
    def load(
        cls, data: str, data_dir: str | Path | None, options: Any, *, batch_size: int, device: torch.device | str
    ) -> Self:
        """Text by name or path; see `forgetless.data.load_text`."""
        from forgetless.data.text import load_text

        text = load_text(data, data_dir, options.vocabulary)
        return cls(text, batch_size, options.num_steps, independent=options.independent, device=device)

    @property
    def num_words(self) -> int:
        """V, the size of the vocabulary."""
        return self.data.num_words

    @property
    def num_outputs(self) -> int:
        """A logit for each word of the vocabulary, for each word of a chunk."""
        return self.num_steps * self.data.num_words

    @property
    def error_of_guessing(self) -> float:
        """Log V."""
        return math.log(self.data.num_words)

    @property
    def largest_error(self) -> float:
        """A cross entropy has no bound, and one above guessing is that of a model that diverged."""
        return self.error_of_guessing

    @property
    def diverged_above(self) -> float:
        """5 nats above guessing."""
        return self.error_of_guessing + _DIVERGED_NATS

    def reward(self, error: float) -> float:
        """80 / perplexity.

        Args:
            error: Cross entropy.
        """
        return REWARD_SCALE / math.exp(min(error, 700.0)) if math.isfinite(error) else math.nan

    @classmethod
    def in_words(cls, error: float) -> str:
        """As perplexity.

        Args:
            error: Cross entropy.
        """
        return f"perplexity {math.exp(min(error, 700.0)):.0f}"

    @staticmethod
    def loss(outputs: Any, targets: Tensor) -> Tensor:
        """Mean cross entropy, in nats per token.

        Args:
            outputs: Logits (B, T, V).
            targets: The next words (B, T).
        """
        import torch.nn.functional as F

        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())

    def digest(self) -> str:
        """SHA-256 of the words of all splits, as numbers."""
        return sha256_of(self._texts)

    def training_batches(self, num_batches: int, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """Successive chunks of every stream, over and over; with `independent`, chunks from random places.

        Args:
            num_batches: How many batches.
            generator: Draws the places if `independent`.
            start: How many batches to pass over.

        Yields:
            Words and the words after them, (B, T) each.
        """
        import torch

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
        with evaluating(model):
            for number, (words, targets) in enumerate(self.batches(split)):
                if number == num_batches:
                    break
                value, state = model.loss(words, targets, architecture, state)
                total += float(value) * targets.numel()
                seen += targets.numel()
        return total / seen

    def held_out_loss(
        self, model: RecurrentSupernet, split: SplitName, architecture: Any = None, num_batches: int | None = None
    ) -> float:
        """The error, which is the loss."""
        return self.error(model, split, architecture, num_batches)

    def reward_of_loss(self, loss: float) -> float:
        """As that of the error, 80 / perplexity = 80 exp(−loss).

        Args:
            loss: Cross entropy.
        """
        return self.reward(loss)

    def published_error(self, model: RecurrentSupernet, split: SplitName, architecture: Any = None) -> float:
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
        with evaluating(model):
            for place in range(0, text.shape[1] - 1, self.num_steps):
                chunk = text[:, place : place + self.num_steps + 1]
                value, state = model.loss(chunk[:, :-1], chunk[:, 1:], architecture, state)
                total += float(value) * (chunk.shape[1] - 1)
        return total / (text.shape[1] - 1)
