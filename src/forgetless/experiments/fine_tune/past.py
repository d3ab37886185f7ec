"""What a protection may see of the past of a model: examples of three kinds, in two halves that share none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from forgetless.errors import InputError
from forgetless.experiments.fine_tune.text import Windows, logits_in
from forgetless.importance import sample_text
from forgetless.tasks.base import evaluating

if TYPE_CHECKING:
    from forgetless.experiments.fine_tune.config import Past
    from forgetless.tasks.base import Batch

_TEXTS_AT_A_TIME = 64
_WINDOWS = 3
"""Of a text that the model writes."""


@dataclass(frozen=True)
class Examples:
    """Tokens and the tokens after them, (N, T) each."""

    inputs: Tensor
    targets: Tensor

    def batches(self, size: int) -> Iterator[Batch]:
        """Neighbouring examples, so many at a time; the last batch may have fewer.

        Args:
            size: How many.
        """
        return iter(zip(torch.split(self.inputs, size), torch.split(self.targets, size), strict=True))

    def part(self, places: slice) -> Examples:
        """Some of them.

        Args:
            places: Which.
        """
        return Examples(self.inputs[places], self.targets[places])


@dataclass(frozen=True)
class Halves:
    """Examples of the past.

    Attributes:
        seen: What a protection may see.
        unseen: As many that it never sees: on them it is measured what was lost.
    """

    seen: Examples
    unseen: Examples


def examples_of_the_past(
    on: Past, model: nn.Module, old: Windows, new: Windows, first: int, num_seen: int, generator: torch.Generator
) -> Halves:
    """Examples of what a model was trained on before.

    `own-samples` are windows from the middle of texts of 4 T tokens that the model writes from the first token on, each
    seeing at most T before it; three of a text. Windows of real text, too, begin in its middle, and lose more than the
    beginning of a text, of which more is known. `old-data` are windows of the old importance split, `new-inputs`
    windows of the new training text with targets y_t ~ softmax(o_t) that the model draws. Windows of texts are evenly
    spread, and the halves take turns.

    Args:
        on: Which kind.
        model: As it was trained on the old text.
        old: The old text.
        new: The new text.
        first: The token that texts begin with.
        num_seen: Examples of each half; of a shorter text fewer.
        generator: Draws own samples and labels; on the model's device.

    Raises:
        InputError: If the old text has fewer than two windows held out.
    """
    if on == "own-samples":
        return _own_samples(model, old.context, first, num_seen, generator)
    windows = old.windows("importance", 2 * num_seen) if on == "old-data" else new.windows("train", 2 * num_seen)
    if len(windows) < 2:
        raise InputError(
            f"Expected at least 2 windows of {old.context} tokens of importance text, but got {len(windows)}. Use a "
            "longer text or a shorter context."
        )
    inputs, targets = windows[:, :-1], windows[:, 1:]
    if on == "new-inputs":
        targets = _labels_drawn(model, inputs, generator)
    found = Examples(inputs, targets)
    return Halves(found.part(slice(0, None, 2)), found.part(slice(1, None, 2)))


def _own_samples(model: nn.Module, context: int, first: int, num_seen: int, generator: torch.Generator) -> Halves:
    """Windows that the model wrote; windows of one text are in one half."""

    def written(num_texts: int) -> Tensor:
        prompts = torch.full((num_texts, 1), first, device=generator.device)
        return sample_text(model, prompts, (1 + _WINDOWS) * context, context=context, generator=generator)

    num_texts = math.ceil(num_seen / _WINDOWS)  # of each half
    texts = torch.cat([written(len(some)) for some in torch.split(torch.arange(2 * num_texts), _TEXTS_AT_A_TIME)])
    # Without the first T tokens, (texts, W T + 1) → (texts, W, T + 1): a token that ends a window begins the next.
    windows = texts[:, context:].unfold(1, context + 1, context)
    halves = [half.flatten(0, 1)[:num_seen] for half in torch.split(windows, num_texts)]
    seen, unseen = (Examples(half[:, :-1], half[:, 1:]) for half in halves)
    return Halves(seen, unseen)


def _labels_drawn(model: nn.Module, inputs: Tensor, generator: torch.Generator) -> Tensor:
    """A token after each one, drawn from what the model expects there."""
    drawn = []
    with evaluating(model):
        for some in torch.split(inputs, _TEXTS_AT_A_TIME):
            logits = logits_in(model(some)).float()
            labels = torch.multinomial(logits.flatten(0, -2).softmax(-1), 1, generator=generator)
            drawn.append(labels.view_as(some))
    return torch.cat(drawn)
