"""The only training loop: one model, some batches, under some protection."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from forgetless.protection import Protection


def train(
    forward: Callable[[Any], Any],
    batches: Iterable[tuple[Any, Tensor]],
    loss_fn: Callable[[Any, Tensor], Tensor],
    optimizer: Optimizer,
    protection: Protection,
    *,
    after_step: Callable[[int], None] | None = None,
) -> None:
    """Take one optimizer step per batch on loss_fn(forward(inputs), targets), and let the protection do its part.

    Args:
        forward: The model, or one architecture of a supernet.
        batches: Pairs (inputs, targets); training ends with them.
        loss_fn: (outputs, targets) → scalar, the mean over examples.
        optimizer: Of the model's weights.
        protection: Of the weights that earlier models use.
        after_step: Called with the number of steps taken so far.
    """
    with protection.during(optimizer):
        for step, (inputs, targets) in enumerate(batches, start=1):
            optimizer.zero_grad(set_to_none=True)
            loss_fn(forward(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if after_step is not None:
                after_step(step)
