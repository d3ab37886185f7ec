"""What a language model or classifier knew before: old examples, or its own, with one loss per target."""

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset

from forgetless.errors import InputError
from forgetless.importance import Batch, LossFunction, evaluated
from forgetless.importance.labels import logits_of

MOST_MEASURED = 64
"""Examples that the loss is measured on, at most; a quarter of them where there are fewer than four times as many."""

IGNORED = -100
"""The label that transformers give to what is no target."""


@dataclass(frozen=True)
class OldExamples:
    """Examples as pairs of inputs and targets, collated anew each time that they are gone through.

    A collator may draw, as those of masked language models do: it draws the same every time, and what training draws
    from is left alone.

    Attributes:
        examples: With length and places, or a tensor with examples along dim 0.
        collate: Makes a batch of keyword arguments of some examples.
        batch_size: Examples at a time.
        device: Where the batches go.
        label_names: Which keyword arguments are the labels.
        loss_fn: Maps (outputs, targets) to one loss per target.
        shift: 1 if output t is compared with label t + 1, as in causal language models.
    """

    examples: Any
    collate: Callable[[list[Any]], Mapping[str, Any]]
    batch_size: int
    device: torch.device
    label_names: Sequence[str]
    loss_fn: LossFunction
    shift: int = 0

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self), self.batch_size):
            inputs, labels = self.labelled(start)
            yield inputs, shifted(labels) if self.shift and isinstance(labels, Tensor) else labels

    def labelled(self, start: int = 0) -> Batch:
        """Inputs and labels of the batch that begins there, labels as they are.

        Args:
            start: Of its first example.

        Raises:
            InputError: If the collator gives none of the labels.
        """
        examples = [self.examples[i] for i in range(start, min(start + self.batch_size, len(self)))]
        with fixed_randomness(start):
            collated = self.collate(examples)
        batch = {name: v.to(self.device) if isinstance(v, Tensor) else v for name, v in collated.items()}
        labels = {name: batch.pop(name) for name in self.label_names if batch.get(name) is not None}
        if not labels:
            raise InputError(
                f"Expected old examples with {' or '.join(self.label_names)}, but got a batch of {', '.join(batch)}. "
                "Add labels, choose a collator that does, or protect the model by its own samples=."
            )
        inputs = {name: value for name, value in batch.items() if value is not None}
        return inputs, next(iter(labels.values())) if len(labels) == 1 else labels

    def split(self) -> tuple["OldExamples", "OldExamples"]:
        """Examples for the Fisher information, and others, evenly spread, for the loss; up to three serve for both."""
        num = len(self)
        held_out = min(MOST_MEASURED, num // 4)
        if not held_out:
            return self, self
        chosen = {i * num // held_out for i in range(held_out)}
        rest = [i for i in range(num) if i not in chosen]
        parts = (Subset(self.examples, rest), Subset(self.examples, sorted(chosen)))
        return replace(self, examples=parts[0]), replace(self, examples=parts[1])

    @torch.no_grad()
    def loss(self, model: nn.Module) -> float:
        """Mean loss per target.

        Args:
            model: Evaluated in eval mode, and left in the mode that it was in.
        """
        total, count = torch.zeros((), dtype=torch.float64, device=self.device), 0
        with evaluated(model):
            for inputs, targets in self:
                losses = self.loss_fn(model(**inputs), targets)
                total += losses.double().sum()
                count += int((targets >= 0).sum()) if _are_classes(targets) else losses.numel()
        return float(total) / max(count, 1)


def token_loss(outputs: Any, targets: Tensor) -> Tensor:
    """Cross entropy of each target, 0 where it is ignored; in at least float32.

    Args:
        outputs: That hold logits, classes last.
        targets: One class for each row of logits.

    Raises:
        InputError: If logits and targets do not fit.
    """
    logits = logits_of(outputs, "empirical")
    if not _are_classes(targets) or logits.shape[:-1] != targets.shape:
        raise InputError(_no_loss(f"labels of {targets.dtype} in {tuple(targets.shape)}", logits))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits.movedim(-1, 1), targets, reduction="none", ignore_index=IGNORED)


def shifted(labels: Tensor) -> Tensor:
    """The label of the next place, in (B, T); the last has none.

    Args:
        labels: In (B, T).
    """
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


@torch.no_grad()
def told_shift(model: nn.Module, old: OldExamples, *, is_causal: bool) -> int:
    """How far labels are shifted in the model's own loss, 0 or 1, as its value on the first batch tells.

    Args:
        model: Returns logits, and with labels a loss.
        old: Some of its examples.
        is_causal: Which to prefer where both give the same, as where the logits are all equal.

    Raises:
        InputError: If its loss is neither.
    """
    inputs, labels = old.labelled()
    with evaluated(model):
        outputs = model(**inputs, **(labels if isinstance(labels, dict) else {old.label_names[0]: labels}))
    own = getattr(outputs, "loss", None)
    if not isinstance(own, Tensor) or isinstance(labels, dict):
        raise InputError(_no_loss("no loss, or one of several labels", None))
    allowed = 1e-4 if own.dtype in {torch.float32, torch.float64} else 2e-2
    for shift in (1, 0) if is_causal else (0, 1):
        if shift and labels.ndim != 2:
            continue
        targets = shifted(labels) if shift else labels
        mean = token_loss(outputs, targets).sum() / max(int((targets >= 0).sum()), 1)
        if abs(float(mean) - float(own)) <= allowed * max(1.0, abs(float(own))):
            return shift
    raise InputError(_no_loss(f"a loss of {float(own):.4g}", None))


def own_examples(texts: Tensor, like: OldExamples) -> OldExamples:
    """Texts as examples of themselves: every token after the first is a label that was drawn from the model.

    Args:
        texts: In (num, length).
        like: Whose batch size, device and loss they take.
    """

    def collate(examples: list[Tensor]) -> Mapping[str, Tensor]:
        tokens = torch.stack(examples)
        return {"input_ids": tokens, "labels": tokens}

    return replace(like, examples=texts, collate=collate, label_names=("labels",))


@contextlib.contextmanager
def fixed_randomness(seed: int) -> Iterator[None]:
    """Every generator of the CPU in a given state, and afterwards as it was.

    Args:
        seed: At least 0.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - collators draw from the global one
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _are_classes(targets: Any) -> bool:
    return isinstance(targets, Tensor) and not targets.is_floating_point()


def _no_loss(found: str, logits: Tensor | None) -> str:
    of = "" if logits is None else f" for logits in {tuple(logits.shape)}"
    return (
        "Expected a model whose loss is the mean cross entropy of its labels, shifted by one or not, but got "
        f"{found}{of}. Pass loss_fn=, which maps (outputs, labels) to one loss per target."
    )
