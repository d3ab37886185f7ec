"""One architecture trained from scratch, with weights of its own: what a search's findings are worth."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from forgetless import ranks
from forgetless.parts import OptimizerConfig
from forgetless.protection.none import NoProtection
from forgetless.records import Record
from forgetless.schema import Measured
from forgetless.search.rates import RateConfig, rate_factor
from forgetless.search.setup import make_supernet
from forgetless.spaces import SearchSpace
from forgetless.tasks import Task
from forgetless.tasks.base import BatchLoss
from forgetless.training import make_optimizer, train


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult(Record):
    """What one training from scratch came to.

    Attributes:
        validation_error: (error) Of the trained architecture on all of the split; null where it diverged.
        test_error: (error) The same on the test split.
        parameters: (count) Weights that the architecture uses.
        seconds: (seconds) Wall clock, over all calls if it was interrupted. It alone differs between two trainings.
    """

    validation_error: Measured
    test_error: Measured
    parameters: int
    seconds: float


def train_from_scratch(
    task: Task[Any],
    space: SearchSpace,
    architecture: Any,
    optimizer_config: OptimizerConfig,
    *,
    device: str,
    seed: int,
    num_batches: int,
    rates: RateConfig | None = None,
    reset_state_every: int | None = None,
    as_published: bool = True,
    state: Mapping[str, Any] | None = None,
    on_step: Callable[[Callable[[], dict[str, Any]]], None] | None = None,
) -> TrainingResult:
    """Train an architecture alone, as the search trains its models, and measure it.

    Args:
        task: The data.
        space: With its supernet.
        architecture: A member of the space.
        optimizer_config: Optimizer and clipping.
        device: Where to train.
        seed: Of the initial weights and of the batches.
        num_batches: How many.
        rates: How the learning rate changes over them, the whole training being one epoch; constant if None.
        reset_state_every: After how many batches the state that a text carries from batch to batch is zero again; only
            at the start if None. Errors are measured from a zero state. Weights that have not seen one for hundreds of
            batches may have learnt to rely on a state that it does not lead to: then the error is anything, although
            the training loss is low.
        as_published: Measure the test error as it is published, which for text is slow: over the whole file as one
            stream; else as the validation error.
        state: To go on from: of an earlier call's `on_step`, with the same other arguments. The result is the same,
            bit for bit on the CPU.
        on_step: Called after each step with a function that makes the state; `torch.load` reads it with
            `weights_only=True`.

    Returns:
        Its errors, size and time.
    """
    before, started = 0.0 if state is None else state["seconds"], time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # what is drawn in training, such as dropout
        model: Any = make_supernet(device, task, space, seed)
        model.train()
        optimizer, loss = make_optimizer(optimizer_config, model), task.loss_of(model, architecture)
        done = 0
        if state is not None:
            done = state["step"]
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            loss.state = None if state["carried"] is None else ranks.here().own(state["carried"])
            torch.set_rng_state(state["random_state"])

        def after_step(step: int) -> None:
            def present() -> dict[str, Any]:
                return {
                    "step": done + step,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "carried": ranks.here().gathered(loss.state),
                    "random_state": torch.get_rng_state(),
                    "seconds": before + time.perf_counter() - started,
                }

            if on_step is not None:
                on_step(present)

        batches = _prepared(
            task.training_batches(num_batches - done, torch.Generator().manual_seed(seed), start=done),
            optimizer,
            loss,
            start=done,
            total=num_batches,
            rates=rates or RateConfig(),
            reset_state_every=reset_state_every,
        )
        train(
            batches,
            loss,
            optimizer,
            NoProtection([]),
            max_gradient_norm=optimizer_config.max_gradient_norm,
            after_step=after_step,
        )
    measures: list[Callable[[], float]] = [
        lambda: task.error(model, "validation", architecture),
        lambda: (task.published_error if as_published else task.error)(model, "test", architecture),
    ]
    validation_error, test_error = ranks.here().each(measures, lambda measure: measure())
    return TrainingResult(
        validation_error=validation_error,
        test_error=test_error,
        parameters=sum(weight.numel() for weight in model.used_parameters(architecture).values()),
        seconds=before + time.perf_counter() - started,
    )


def _prepared(
    batches: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    loss: BatchLoss,
    *,
    start: int,
    total: int,
    rates: RateConfig,
    reset_state_every: int | None,
) -> Iterator[Any]:
    """Batches number `start`, … of `total`; before each, the learning rate and the state are as they should be."""
    full = optimizer.defaults["lr"]  # a group's own may be that of an interrupted call's last step
    for step, batch in enumerate(batches, start):
        for group in optimizer.param_groups:
            group["lr"] = full * rate_factor(rates, step, per_epoch=total, total=total)
        if reset_state_every is not None and step % reset_state_every == 0:
            loss.state = None
        yield batch
