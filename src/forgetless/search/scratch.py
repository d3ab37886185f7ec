"""One architecture trained from scratch, with weights of its own: what a search's findings are worth."""

import math
import time
from typing import Any

import torch

from forgetless.protection import NoProtection
from forgetless.search.config import SearchConfig
from forgetless.search.setup import make_optimizer, make_space, make_supernet
from forgetless.tasks import LanguageModelling, Task
from forgetless.training import train


def train_from_scratch(
    config: SearchConfig, task: Task[Any], architecture: Any, *, seed: int, num_batches: int, whole_text: bool = True
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

    Returns:
        `validation_error` and `test_error`, None where they are not finite; `parameters`, the number of weights that
        the architecture uses; `seconds`.
    """
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # what is drawn in training, such as dropout
        model: Any = make_supernet(config, task, make_space(config), seed)
        model.train()
        train(
            task.training_batches(num_batches, torch.Generator().manual_seed(seed)),
            task.loss_of(model, architecture),
            make_optimizer(config, model),
            NoProtection([]),
            max_gradient_norm=config.max_gradient_norm,
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
        "seconds": time.perf_counter() - started,
    }
