"""One architecture trained from scratch, with weights of its own: what a search's findings are worth."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from forgetless.protection import NoProtection
from forgetless.search.config import SearchConfig
from forgetless.search.setup import make_optimizer, make_space, make_supernet
from forgetless.tasks import LanguageModelling, Task
from forgetless.training import train


def train_from_scratch(
    config: SearchConfig,
    task: Task[Any],
    architecture: Any,
    *,
    seed: int,
    num_batches: int,
    whole_text: bool = True,
    state: Mapping[str, Any] | None = None,
    on_step: Callable[[Callable[[], dict[str, Any]]], None] | None = None,
) -> dict[str, Any]:
    """Train an architecture alone, as the search trains its models, and measure it.

    Args:
        config: Space, sizes, optimizer and clipping.
        task: The data.
        architecture: A member of the space.
        seed: Of the initial weights and of the batches.
        num_batches: How many.
        whole_text: Take the test error of text over the whole file as one stream, which is what is published and
            slow; else in parallel streams, as the validation error. No difference for images.
        state: To go on from: of an earlier call's `on_step`, with the same other arguments. The result is the same,
            bit for bit on the CPU.
        on_step: Called after each step with a function that makes the state; `torch.load` reads it with
            `weights_only=True`.

    Returns:
        `validation_error` and `test_error`, None where they are not finite; `parameters`, the number of weights that
        the architecture uses; `seconds`.
    """
    before, started = 0.0 if state is None else state["seconds"], time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # what is drawn in training, such as dropout
        model: Any = make_supernet(config, task, make_space(config), seed)
        model.train()
        optimizer, loss = make_optimizer(config, model), task.loss_of(model, architecture)
        done = 0
        if state is not None:
            done = state["step"]
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            loss.state = state["carried"]
            torch.set_rng_state(state["random_state"])

        def after_step(step: int) -> None:
            def present() -> dict[str, Any]:
                return {
                    "step": done + step,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "carried": loss.state,
                    "random_state": torch.get_rng_state(),
                    "seconds": before + time.perf_counter() - started,
                }

            if on_step is not None:
                on_step(present)

        train(
            task.training_batches(num_batches - done, torch.Generator().manual_seed(seed), start=done),
            loss,
            optimizer,
            NoProtection([]),
            max_gradient_norm=config.max_gradient_norm,
            after_step=after_step,
        )
    validation = task.error(model, "validation", architecture)
    if whole_text and isinstance(task, LanguageModelling):
        test = task.cross_entropy_of_text(model, "test", architecture)
    else:
        test = task.error(model, "test", architecture)
    used = model.used_parameters(architecture).values()
    return {
        "validation_error": validation if math.isfinite(validation) else None,
        "test_error": test if math.isfinite(test) else None,
        "parameters": sum(weight.numel() for weight in used),
        "seconds": before + time.perf_counter() - started,
    }
