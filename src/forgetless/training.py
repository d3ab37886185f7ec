"""The only training loop: one model, some batches, under some protection."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from forgetless.errors import InputError
from forgetless.protection import Protection

Batch = TypeVar("Batch")


def train(
    batches: Iterable[Batch],
    loss_of: Callable[[Batch], Tensor],
    optimizer: Optimizer,
    protection: Protection,
    *,
    max_gradient_norm: float | None = None,
    on_gradients: Callable[[], None] | None = None,
    after_step: Callable[[int], None] | None = None,
) -> None:
    """Take one optimizer step per batch, and let the protection do its part.

    Args:
        batches: Training ends with them.
        loss_of: The loss of a batch, a scalar that is a mean over its examples.
        optimizer: Of the weights that the loss depends on.
        protection: Of the weights that earlier models use.
        max_gradient_norm: The gradient of all the optimizer's weights together is scaled down to this norm; the
            protection takes no part in it.
        on_gradients: Called after each backward pass, before the gradients are scaled.
        after_step: Called with the number of steps taken so far.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    with protection.during(optimizer):
        for step, batch in enumerate(batches, start=1):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(batch)
            if loss.requires_grad:  # not where a protection froze everything the loss depends on
                loss.backward()  # type: ignore[no-untyped-call]
            if on_gradients is not None:
                on_gradients()
            if max_gradient_norm is not None:
                torch.nn.utils.clip_grad_norm_(weights, max_gradient_norm)
            optimizer.step()
            if after_step is not None:
                after_step(step)


def expect_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Args:
        device: Such as `cpu`, `cuda:1`, `mps`.

    Raises:
        InputError: If no tensor can be made there.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"Expected a device that this machine has, but got {device!r}.") from error


@contextlib.contextmanager
def cpu_arithmetic(threads: int, *, flush_denormals: bool = False) -> Iterator[None]:
    """Within it PyTorch computes with so many threads, which decides the last bits of its sums.

    Args:
        threads: Of the CPU.
        flush_denormals: Take numbers below 1.2e-38 as 0, because they slow a CPU several times.
    """
    threads_before = torch.get_num_threads()
    flushed_before = float(torch.tensor(1e-39) * 0.5) == 0
    torch.set_num_threads(threads)
    torch.set_flush_denormal(flushed_before or flush_denormals)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.set_flush_denormal(flushed_before)
