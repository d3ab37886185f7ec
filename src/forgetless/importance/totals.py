"""The sums over all batches that one process has, at once or in parts that fit into memory."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from forgetless.choices import Unit
from forgetless.errors import InputError
from forgetless.importance.batches import inputs_only, pair
from forgetless.importance.budget import Parts, parts, without_others
from forgetless.importance.checkpoints import as_in_training
from forgetless.importance.labels import Labels
from forgetless.importance.layers import UnknownLayerError
from forgetless.importance.method import CHECKED_EXAMPLES, Chosen, choose_method, still_right
from forgetless.importance.prediction import predictive
from forgetless.importance.request import Request, zeros
from forgetless.importance.targets import made_targets, num_targets
from forgetless.progress import OnProgress, Progress


@dataclass(frozen=True)
class Means:
    """How the sums are made.

    Attributes:
        per: What they will be divided by.
        memory: In bytes, beside the model, a batch and the result; None: no limit.
        on_progress: Called after each batch.
    """

    per: Unit = "example"
    memory: float | None = None
    on_progress: OnProgress | None = None


def own_totals(
    wanted: Request, batches: Iterable[Any], given_loss: bool, means: Means
) -> tuple[dict[str, Tensor], int]:
    """Powers and number of examples (or targets) of this process's batches.

    Args:
        wanted: What is wanted of each batch, without its inputs and targets.
        batches: As in `diagonal_fisher`.
        given_loss: Whether they hold targets.
        means: How the sums are made.

    Raises:
        InputError: If batches are wrong, do not fit into the memory, or would have to be gone through again.
    """
    totals = zeros(wanted.named)
    num_batches = len(batches) if isinstance(batches, Sized) else 0
    if means.memory is None:
        tell = _Teller(means.on_progress, "Fisher", 0, num_batches)
        return totals, _totals_of(wanted, _Batches(batches, given_loss, tell), totals, means.per)
    batches, first = _first(wanted, batches, given_loss)
    if first is None:
        return totals, 0
    with as_in_training(first):
        planned = parts(first, means.memory)
        if len(planned.blocks) > 1 and isinstance(batches, Iterator):
            raise InputError(
                f"Expected batches that can be gone through {len(planned.blocks)} times, for so many blocks of weights "
                "fit into the memory one after the other, but got an iterator. Pass a list or a DataLoader."
            )
        return totals, _in_parts(wanted, _Batches(batches, given_loss), num_batches, planned, totals, means)


def _first(wanted: Request, batches: Iterable[Any], given_loss: bool) -> tuple[Iterable[Any], Request | None]:
    """The batches, none of them lost, and the first request, if there is one."""
    if wanted.kind == "batch":
        raise InputError(
            "Expected another kind than 'batch' with memory, because the mean gradient of a batch has no parts. "
            "Pass smaller batches."
        )
    again, seen = iter(batches), []
    for batch in again:
        seen.append(batch)
        first = next(iter(_requests(wanted, _Batches([batch], given_loss, num_examples=1))), None)
        if first is not None:
            return itertools.chain(seen, again) if isinstance(batches, Iterator) else batches, first
    return batches, None


def _in_parts(
    wanted: Request, batches: "_Batches", num_batches: int, planned: Parts, totals: dict[str, Tensor], means: Means
) -> int:
    """Add the powers of all batches to the totals, block by block of weights; returns the number of examples."""
    generator, num_blocks = wanted.labels.generator, len(planned.blocks)
    state, count = generator.get_state(), 0
    for number, block in enumerate(planned.blocks):
        generator.set_state(state)  # the same labels for all weights
        label = "Fisher" if num_blocks == 1 else f"Fisher, weights {number + 1} of {num_blocks}"
        tell = _Teller(means.on_progress, label, number * num_batches, num_blocks * num_batches)
        part = wanted._replace(named=block, chunk_numbers=planned.chunk_numbers)
        with without_others(wanted.model, block):
            some = replace(batches, tell=tell, num_examples=planned.num_examples)
            count = _totals_of(part, some, totals, means.per)
    return count


@dataclass
class _Teller:
    """Tells of batches that are done."""

    on_progress: OnProgress | None
    label: str
    done: int = 0
    total: int = 0

    def __call__(self) -> None:
        self.done += 1
        if self.on_progress is not None:
            self.on_progress(Progress(self.done, self.total, self.label))


@dataclass(frozen=True)
class _Batches:
    """Batches as the user gave them, and how they are gone through."""

    batches: Iterable[Any]
    given_loss: bool
    tell: Callable[[], None] = lambda: None
    num_examples: int | None = None


def _totals_of(wanted: Request, batches: _Batches, totals: dict[str, Tensor], per: Unit) -> int:
    """Add the powers of all batches to the totals, in place; returns the number of examples or targets."""
    try:
        return _add_up(_requests(wanted, batches), totals, per)
    except _LateError:
        if isinstance(batches.batches, Iterator):
            raise InputError(
                "Expected a model that keeps the examples of a batch in their order, but got one that reorders a "
                "later batch, when earlier ones cannot be gone through again. Pass the batches as a list or a "
                "DataLoader, not as an iterator."
            ) from None
    for name in wanted.named:
        totals[name].zero_()
    return _add_up(_requests(wanted, batches), totals, per, fast=False)


class _LateError(Exception):
    """The fast way is wrong for a later batch, though it was right for the first."""


def _requests(wanted: Request, batches: _Batches) -> Iterator[Request]:
    """What is wanted of each batch that has examples, or of so many of its examples at a time."""
    drawn = wanted.labels.drawn
    for batch in batches.batches:
        inputs, targets = pair(batch, wanted.model) if batches.given_loss else (inputs_only(batch, wanted.model), None)
        whole = wanted._replace(inputs=inputs, targets=targets)
        size = batches.num_examples or max(1, whole.num_examples)
        for start in range(0, whole.num_examples, size):
            request = whole if size >= whole.num_examples else whole.part(slice(start, start + size))
            if drawn and targets is None:
                request = request._replace(targets=made_targets(request))
            yield request
        batches.tell()


def _add_up(requests: Iterable[Request], totals: dict[str, Tensor], per: Unit, fast: bool = True) -> int:
    """Add the powers of all requests to the totals, in place; returns the number of examples or targets."""
    method: Chosen | None = None
    labels: Labels | None = None
    num_checked = count = 0
    next_check = 2
    for num_batches, request in enumerate(requests, start=1):
        if method is None or num_checked < min(CHECKED_EXAMPLES, request.num_examples):
            method = choose_method(request, fast)
            num_checked = request.num_examples
        elif num_batches == next_check:
            next_check *= 4
            if method.is_fast and not still_right(method.asked(request)):
                raise _LateError
        request = request._replace(in_pairs=method.in_pairs)
        if request.labels.drawn:
            labels = labels or predictive(request)
            request = request._replace(labels=labels or request.labels)
        # Added in place, unless the method may find in the middle that it is wrong.
        request = request._replace(totals=None if method.may_move_rows else totals)
        try:
            found = method(request)
        except UnknownLayerError:  # this batch takes another way through the model than those before
            fast = fast and not method.may_move_rows
            request = request._replace(totals=None)
            method = choose_method(request, fast)
            found = method(request)
        if found is not totals:
            for name, powers in found.items():
                totals[name] += powers
        count += request.num_examples if per == "example" else num_targets(request, is_checked=num_batches > 1)
    return count
