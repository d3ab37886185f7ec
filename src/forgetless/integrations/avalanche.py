"""`WeightPlasticity` in Avalanche's training loop; needs the extra `avalanche`."""

from collections.abc import Iterator
from typing import Any

import torch
from avalanche.models.utils import is_multi_task_module
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from forgetless.importance import Batch, FisherKind, LossFunction, diagonal_fisher
from forgetless.plasticity import WeightPlasticity


class PlasticityPlugin(SupervisedPlugin):
    """Keeps what earlier experiences need of a model's weights, and remembers each experience after its training.

    Within an experience every step of the strategy's optimizer, whichever that is by then, is followed by a proximal
    step. After it the model is consolidated with the Fisher information over the experience's own examples, in their
    evaluation transforms: the mean of squared *per-example* gradients. Avalanche's `EWCPlugin` squares the gradients
    of batch means instead, another quantity that depends on the batch size, so that its `ewc_lambda` is no α.

    A classifier that grows with new classes gets new tensors of a larger shape. What was held of the old ones is then
    held of their leading part in the new ones, and the new units are free (`WeightPlasticity.replace`). Heads that are
    new altogether are not shared, and free. Buffers of shared modules are held where the last experience left them.

    The plugin is saved and restored with the strategy by Avalanche's `save_checkpoint` and `maybe_load_checkpoint`.

    Args:
        plasticity: Of what is to be kept: `WeightPlasticity(model)`, or of the trunk.
        loss_fn: Maps (outputs, targets) to a scalar, as in `diagonal_fisher`; None is the strategy's criterion.
        kind: Of the Fisher information, as in `diagonal_fisher`.

    Attributes:
        plasticity: Anchors and importances of the model's present weights.

    Raises:
        ValueError: At the start of an experience, if the strategy's optimizer holds none of the shared weights.
    """

    def __init__(
        self,
        plasticity: WeightPlasticity,
        *,
        loss_fn: LossFunction | None = None,
        kind: FisherKind = "empirical",
    ) -> None:
        super().__init__()
        self.plasticity = plasticity
        self.loss_fn = loss_fn
        self.kind = kind
        self._followed: Optimizer | None = None
        self._shared: dict[str, Tensor] = {}

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Find the shared weights by name, before the model is adapted to an experience."""
        self._match(strategy.model)

    def before_eval(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """The same, because evaluation adapts the model, too."""
        self._match(strategy.model)

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Follow the strategy's optimizer."""
        self._match(strategy.model)
        self._follow(strategy.optimizer)

    def before_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Follow another optimizer, where a strategy or a plugin has replaced it."""
        self._follow(strategy.optimizer)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Leave the optimizer and consolidate the model."""
        self._follow(None)
        self._match(strategy.model)
        loss_fn = strategy._criterion if self.loss_fn is None else self.loss_fn
        shared = self.plasticity.shared_parameters
        importance = diagonal_fisher(strategy.model, _batches(strategy), loss_fn, self.kind, parameters=shared)
        self.plasticity.consolidate(strategy.model, importance)

    def _follow(self, optimizer: Optimizer | None) -> None:
        if optimizer is self._followed:
            return
        if self._followed is not None:
            self.plasticity.detach(self._followed)
            self._followed = None
        if optimizer is not None:
            self.plasticity.attach(optimizer)
            self._followed = optimizer

    def _match(self, model: nn.Module) -> None:
        """Take anchors and importances over to those weights that the model has replaced by others of their name."""
        named = dict(model.named_parameters())
        if not self._shared:
            shared = {id(parameter) for parameter in self.plasticity.shared_parameters}
            self._shared = {name: parameter for name, parameter in named.items() if id(parameter) in shared}
        for name, old in self._shared.items():
            new = named.get(name, old)
            if new is not old:
                self.plasticity.replace(old, new)
                self._shared[name] = new


def _batches(strategy: Any) -> Iterator[Batch]:
    """The experience's examples; a model with task labels takes them as its second argument."""
    dataset = strategy.experience.dataset.eval()
    takes_task_labels = is_multi_task_module(strategy.model)
    # A generator of its own, because a loader draws a number from the global one.
    loader = DataLoader(
        dataset, strategy.train_mb_size, collate_fn=getattr(dataset, "collate_fn", None), generator=torch.Generator()
    )
    for batch in loader:
        inputs, targets, task_labels = (batch[i].to(strategy.device) for i in (0, 1, -1))
        yield (inputs, task_labels) if takes_task_labels else inputs, targets
