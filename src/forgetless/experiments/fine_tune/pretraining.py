"""The pretraining of a model on the old text, which all arms of a seed share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer

from forgetless.experiments.fine_tune.text import Windows, next_token_loss
from forgetless.protection.none import NoProtection
from forgetless.training import make_optimizer, train

if TYPE_CHECKING:
    from forgetless.parts import OptimizerConfig


def falling(optimizer: Optimizer, num_steps: int) -> Callable[[int], None]:
    """Let the learning rate fall linearly, to 0 were there another step.

    Step t of n has (n − t + 1)/n of the rate that the optimizer has in its first step, whoever set that.

    Args:
        optimizer: Whose rate.
        num_steps: n.

    Returns:
        What to call after each step, with its number from 1.
    """

    def fall(step: int) -> None:
        if step < num_steps:
            for group in optimizer.param_groups:
                group["lr"] *= (num_steps - step) / (num_steps - step + 1)

    return fall


def pretrain(
    model: nn.Module,
    text: Windows,
    num_steps: int,
    optimizer: OptimizerConfig,
    seed: int,
    after_step: Callable[[int], None] = lambda _: None,
) -> None:
    """Train a model on the old text, the learning rate falling linearly to 0.

    Args:
        model: What `StartModel.make` made.
        text: The old one.
        num_steps: Steps.
        optimizer: And its learning rate.
        seed: Of the batches.
        after_step: Called with the number of the step, from 1.
    """
    model.train()
    trained = make_optimizer(optimizer, model)
    fall = falling(trained, num_steps)

    def after(step: int) -> None:
        fall(step)
        after_step(step)

    train(
        text.training_batches(num_steps, torch.Generator().manual_seed(seed)),
        lambda batch: next_token_loss(model(batch[0]), batch[1]),
        trained,
        NoProtection(model.parameters()),
        max_gradient_norm=optimizer.max_gradient_norm,
        after_step=after,
    )
