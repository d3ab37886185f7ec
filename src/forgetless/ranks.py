"""Processes that train one model together, as `torchrun` starts them; in a single process all of it does nothing.

Every process holds all weights and sees every training batch, of which it takes its own rows. After the backward pass
the gradients are averaged, so that every optimizer takes the same step, and the result is that of one process to
rounding. The first process (rank 0) alone reads arguments, and writes; the others wait for what it calls `together`.

Gradients are added in one message rather than by the hooks of DistributedDataParallel: each architecture of a supernet
uses other weights, which these hooks would have to look for in every step, and they would give unused weights a
gradient of 0, which moves them under momentum.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from forgetless import interruption
from forgetless.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")

_LAUNCHED_BY = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class LostError(InputError):
    """Another process has ended, so that this one cannot go on."""


class Ranks:
    """The processes that train together: this one alone.

    Attributes:
        rank: The number of this process, from 0.
        size: How many there are.
        group: Of `torch.distributed`; None if there is one.
    """

    rank = 0
    size = 1
    group: Any = None

    def own(self, batch: T) -> T:
        """This process's rows of a batch, one after the other as processes are.

        Args:
            batch: Tensors with the examples along dim 0, as many as there are processes or a multiple of it.
        """
        return batch

    def some_of_each(self, batches: Sequence[tuple[Any, Any]]) -> Sequence[tuple[Any, Any]]:
        """This process's examples of some batches, of any number: perhaps none.

        Args:
            batches: Pairs of tensors with the examples along dim 0.
        """
        return batches

    def sharing(self) -> contextlib.AbstractContextManager[None]:
        """Within it a model sees this process's rows of a batch, and what mixes examples is of the whole batch."""
        return contextlib.nullcontext()

    def average(self, weights: Sequence[Tensor]) -> None:
        """Set each gradient to its mean over processes; a weight without one has none anywhere.

        Args:
            weights: The same in every process, in the same order.
        """

    def each(self, items: Sequence[T], function: Callable[[T], R]) -> list[R]:
        """What a function gives for each item; each process calls it for some of them.

        Args:
            items: The same in every process.
            function: Uses no other process. What it returns is pickled.
        """
        return [function(item) for item in items]

    def largest(self, *numbers: int) -> list[int]:
        """The largest that any process has of each number.

        Args:
            *numbers: Of this process.
        """
        return list(numbers)

    def gathered(self, rows: Tensor | None) -> Tensor | None:
        """The rows of all processes.

        Args:
            rows: Of this one, as `own` takes them; None gives None.
        """
        return rows


class _Joined(Ranks):
    """Some processes, of `torch.distributed`."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self.rank, self.size, self.group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD

    def own(self, batch: T) -> T:
        found = tuple(map(self._rows, batch)) if isinstance(batch, tuple) else self._rows(batch)
        return cast("T", found)

    def _rows(self, whole: Any) -> Any:
        expect_divisible(len(whole), self.size)
        number = len(whole) // self.size
        return whole[self.rank * number : (self.rank + 1) * number]

    def some_of_each(self, batches: Sequence[tuple[Any, Any]]) -> Sequence[tuple[Any, Any]]:
        own = slice(self.rank, None, self.size)
        return [(inputs[own], targets[own]) for inputs, targets in batches if len(targets) > self.rank]

    @contextlib.contextmanager
    def sharing(self) -> Iterator[None]:
        from forgetless.whole_batch import WholeBatchStatistics

        with WholeBatchStatistics(self.size):
            _State.is_sharing = True
            try:
                yield
            finally:
                _State.is_sharing = False

    def average(self, weights: Sequence[Tensor]) -> None:
        import torch
        import torch.distributed as dist

        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])

    def each(self, items: Sequence[T], function: Callable[[T], R]) -> list[R]:
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, [function(item) for item in items[self.rank :: self.size]])
        return [found[place % self.size][place // self.size] for place in range(len(items))]

    def largest(self, *numbers: int) -> list[int]:
        import torch
        import torch.distributed as dist

        found = torch.tensor(numbers)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return found.tolist()

    def gathered(self, rows: Tensor | None) -> Tensor | None:
        import torch
        import torch.distributed as dist

        if rows is None:
            return None
        found = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(found, rows.contiguous())
        return torch.cat(found)


class _State:
    """What this process takes part in."""

    here: Ranks = Ranks()
    team: Ranks = here
    """Those that may be called together."""
    is_sharing = False


def here() -> Ranks:
    """The processes that work together at this moment; this one alone but within `together`."""
    return _State.here


def num_processes() -> int:
    """How many processes work together wherever something is done `together`."""
    return _State.team.size


def rows_of_all(draw: Callable[[int], Tensor], number: int) -> Tensor:
    """Random numbers for each example of a batch: those that one process with the whole batch would draw.

    Args:
        draw: Draws so many rows; random states are the same in all processes, and are so afterwards.
        number: Examples that this process sees.

    Returns:
        Rows of this process.
    """
    if not _State.is_sharing:
        return draw(number)
    return _State.here.own(draw(number * _State.here.size))


def expect_divisible(batch_size: int, size: int | None = None) -> None:
    """Refuse batches that processes cannot share in equal parts.

    Args:
        batch_size: Examples per batch.
        size: Processes; all that may work together if None.

    Raises:
        InputError: If the number of processes does not divide it.
    """
    size = num_processes() if size is None else size
    if batch_size % size:
        raise InputError(
            f"Expected batches that {size} processes share in equal parts, but got {batch_size} examples in a batch. "
            "Choose another --batch-size or --nproc-per-node."
        )


# ---- starting and ending -----------------------------------------------------------------------------------------


def launched() -> int:
    """How many processes torchrun, or another that sets its variables, has started; 1 without it.

    Raises:
        InputError: If the variables are no numbers.
    """
    if not all(name in os.environ for name in _LAUNCHED_BY):
        return 1
    try:
        rank, size = (int(os.environ[name]) for name in _LAUNCHED_BY[:2])
    except ValueError as error:
        raise InputError(
            f"Expected numbers in RANK and WORLD_SIZE, as torchrun sets them, but got {os.environ['RANK']!r} and "
            f"{os.environ['WORLD_SIZE']!r}. Unset them to run in one process."
        ) from error
    return size if rank < size else 1


def num_local() -> int:
    """How many of these processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", launched()))


def is_first() -> bool:
    """Whether this process is the first of those that were started, or the only one."""
    try:
        return launched() == 1 or int(os.environ["RANK"]) == 0
    except InputError:
        return True


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Within it the processes that were started may be called `together`.

    Yields:
        All of them; this one alone if there are no others.

    Raises:
        LostError: If another one ends within it.
    """
    if launched() == 1:
        yield _State.here
        return
    import torch
    import torch.distributed as dist

    try:
        if (place := int(os.environ.get("LOCAL_RANK", 0))) < torch.cuda.device_count():
            torch.cuda.set_device(place)  # what `cuda` is from now on
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        _State.team = _Joined()
        yield _State.team
    except RuntimeError as error:
        if not _is_of_communication(error):
            raise
        if not is_first():
            interruption.stop_if_asked()
        raise LostError(
            f"Expected all {launched()} processes to go on, but another one has ended. Its own message says why; what "
            "is stored is kept."
        ) from error
    finally:
        _State.team = _State.here = Ranks()
        if dist.is_initialized():
            dist.destroy_process_group()


def _is_of_communication(error: RuntimeError) -> bool:
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error)


@contextlib.contextmanager
def together(function: Callable[..., Any], *arguments: Any) -> Iterator[Ranks]:
    """Within it the other processes do what a function does, and this one does the same in its own way.

    Args:
        function: What the others call; importable. It has to talk to the others exactly as this process does.
        *arguments: Of it; they are pickled.

    Yields:
        All processes.
    """
    if _State.team.size == 1:
        yield _State.here
        return
    from forgetless.workers import Packed

    _tell([function, Packed.of(arguments)])
    with _working():
        yield _State.here


def dismiss() -> None:
    """Tell the other processes that there is nothing more to do."""
    if _State.team.size > 1:
        _tell([None, None])


def follow() -> None:
    """In another process than the first: do what it calls `together`, until it dismisses this one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first process says the same
        while True:
            function, arguments = _tell([None, None])
            if function is None:
                return
            with _working():
                function(*arguments.unpacked())


@contextlib.contextmanager
def _working() -> Iterator[None]:
    _State.here = _State.team
    try:
        yield
    finally:
        _State.here = Ranks()


def _tell(message: list[Any]) -> list[Any]:
    """The message of the first process."""
    import torch.distributed as dist

    dist.broadcast_object_list(message, src=0)
    return message
