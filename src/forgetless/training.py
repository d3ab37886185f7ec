"""The only training loop: one model, some batches, under some protection."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from forgetless import ranks
from forgetless.errors import DivergedError, InputError
from forgetless.parts import OptimizerConfig
from forgetless.protection import Evidence, Protection

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
) -> int:
    """Take one optimizer step per batch, and let the protection do its part.

    What `protection.extra_loss` returns for a batch is added to its loss; where it is None, nothing is computed.

    With `max_gradient_norm` a batch whose gradient is not finite is skipped: scaled, it would turn every weight
    into NaN.

    Where several processes train together (`forgetless.ranks`), each takes the loss of its own rows of a batch, and all
    step with the mean of their gradients. What the protection adds is computed on the whole batch in each of them.

    Args:
        batches: Training ends with them.
        loss_of: The loss of a batch, a scalar that is a mean over its examples.
        optimizer: Of the weights that the loss depends on.
        protection: Of the weights that earlier models use.
        max_gradient_norm: The gradient of all the optimizer's weights together is scaled down to this norm: that of
            the loss and of the protection's extra loss. A protection that changes steps takes no part in it.
        on_gradients: Called after each backward pass, before the gradients are scaled.
        after_step: Called with the number of the batch, from 1.

    Returns:
        How many batches were skipped.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    passed_over, processes = 0, ranks.here()
    with protection.during(optimizer):
        for step, batch in enumerate(batches, start=1):
            optimizer.zero_grad(set_to_none=True)
            with processes.sharing():
                loss = loss_of(processes.own(batch))
            extra = protection.extra_loss(batch)
            if extra is not None:
                # Models that the extra loss is about may hold weights of their own, which are not to be touched.
                held = [weight for weight in weights if weight.requires_grad]
                (loss + extra).backward(inputs=held)  # type: ignore[no-untyped-call]
            elif loss.requires_grad:  # not where a protection froze everything the loss depends on
                loss.backward()  # type: ignore[no-untyped-call]
            processes.average(weights)
            norm = None
            if max_gradient_norm is not None:
                norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
                if not torch.isfinite(norm):
                    passed_over += 1
                    continue
            if on_gradients is not None:
                on_gradients()
            if max_gradient_norm is not None and norm is not None:
                torch.nn.utils.clip_grads_with_norm_(weights, max_gradient_norm, norm)
            optimizer.step()
            if after_step is not None:
                after_step(step)
    return passed_over


def consolidate(protection: Protection, model: nn.Module, evidence: Evidence) -> bool:
    """Hold a model from now on, unless it has diverged; a warning tells that it is not held.

    Args:
        protection: What holds it.
        model: The model just trained.
        evidence: What the protection may ask about it.

    Returns:
        Whether it is held.
    """
    try:
        protection.consolidate(model, evidence)
    except DivergedError as error:
        warnings.warn(f"A model that diverged is not protected from later ones. {error}", stacklevel=2)
        return False
    return True


def make_optimizer(
    config: OptimizerConfig,
    model: nn.Module,
    shared: Sequence[nn.Parameter] = (),
    *,
    shared_rate: float | None = None,
) -> Optimizer:
    """The optimizer of a model or supernet; the shared weights are its first group, if there are any.

    Args:
        config: Optimizer, learning rate and weight decay.
        model: Whose weights to train.
        shared: Those of them that are protected.
        shared_rate: Their learning rate; that of the others if None.
    """
    rate = config.learning_rate
    held = {id(weight) for weight in shared}
    others = [weight for weight in model.parameters() if id(weight) not in held]
    own: dict[str, Any] = {"params": list(shared), "lr": rate if shared_rate is None else shared_rate}
    groups = [group for group in (own, {"params": others}) if group["params"]]
    decay: dict[str, Any] = {} if config.weight_decay is None else {"weight_decay": config.weight_decay}
    if config.name == "sgd":
        return SGD(groups, lr=rate, momentum=config.momentum, **decay)
    return (Adam if config.name == "adam" else AdamW)(groups, lr=rate, **decay)


class MeanStep:
    """Mean over steps of ‖θ(t+1) − θ(t)‖₂, all weights in one vector.

    Args:
        weights: Whose steps.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._weights: list[Tensor] = list(weights)
        self._total = 0.0
        self._count = 0

    @torch.no_grad()
    def start(self) -> None:
        """Before a model's first step."""
        self._previous = [weight.clone() for weight in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """After a step."""
        torch._foreach_sub_(self._previous, self._weights)
        norms = torch._foreach_norm(self._previous)
        self._total += float(torch.linalg.vector_norm(torch.stack(list(norms))))
        self._count += 1
        torch._foreach_copy_(self._previous, self._weights)

    def state_dict(self) -> dict[str, Any]:
        """What to go on from before a model's first step."""
        return {"total": self._total, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: From `state_dict`.
        """
        self._total, self._count = state["total"], state["count"]

    @property
    def mean(self) -> float:
        """Over all steps so far; 0 before the first."""
        return self._total / max(1, self._count)


def expect_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Args:
        device: Such as `cpu`, `cuda:1`, `mps`.

    Raises:
        InputError: If no number can be kept there.
    """
    if device == "cpu":
        return
    try:
        torch.zeros(1, device=device).item()  # which the device `meta` has no answer to
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"Expected a device that this machine has, but got {device!r}. Choose cpu, or one that PyTorch sees."
        ) from error


def expect_memory(needed: int, device: str, what: str, sizes: Mapping[str, object]) -> None:
    """Refuse sizes that do not fit a device's memory.

    Args:
        needed: In bytes.
        device: Where it is needed; the machine's memory but for CUDA.
        what: What should fit, for the message.
        sizes: The options that decide how much is needed.

    Raises:
        InputError: If there is not so much.
    """
    if device.startswith("cuda"):
        available = torch.cuda.get_device_properties(device).total_memory
    else:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > available:
        told = ", ".join(f"{name}={value}" for name, value in sizes.items())
        raise InputError(
            f"Expected {what} {available / 2**30:.1f} GiB of memory, but {told} need about {needed / 2**30:.1f} GiB. "
            "Choose fewer."
        )


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
