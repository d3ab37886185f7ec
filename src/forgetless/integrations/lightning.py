"""`WeightPlasticity` in Lightning's training loop; needs the extra `lightning`."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from forgetless.budget import Budget, BudgetReport, Keeper
from forgetless.errors import InputError
from forgetless.importance import Batch, FisherKind, LossFunction, diagonal_fisher
from forgetless.plasticity import WeightPlasticity


class PlasticityCallback(Callback):
    """Keeps earlier models' shared weights while `Trainer.fit` trains another, and remembers that one when it is done.

    One `fit` is the training of one model. For as long as it runs, each of the trainer's optimizers that holds shared
    weights is followed by a proximal step: once per step of the optimizer, so that accumulated and clipped gradients
    and manual optimization need nothing more. At its end the model is consolidated, if there are `batches`; a `fit`
    that fails, is interrupted, or finds itself finished already, consolidates nothing.

    Buffers of shared modules, such as BatchNorm's statistics, are the module's own for as long as the trainer runs,
    whether it fits, validates, tests or predicts; after it, earlier models have theirs back (`buffers_of`). That needs
    a plasticity of modules, not of parameters.

    Anchors and importances go into the trainer's checkpoints, with α and the other options, and come back with
    `fit(..., ckpt_path=...)`.

    Args:
        plasticity: Of the modules, or the weights, that the models share.
        batches: Pairs of inputs and targets that the model was not trained on, if there are some to spare; gone
            through at the end of every `fit`, so a `DataLoader` or a list, not an iterator. None leaves `consolidate`
            to the caller.
        loss_fn: Maps (what the module's `forward` returns, targets) to a scalar, as in `diagonal_fisher`.
        kind: Of the Fisher information, as in `diagonal_fisher`.

    Raises:
        InputError: If one of `batches` and `loss_fn` is given without the other. At the start of `fit`, if no
            optimizer holds shared weights.

    >>> from torch import nn
    >>> trunk = nn.Linear(2, 2)
    >>> callback = PlasticityCallback(WeightPlasticity(trunk, alpha=1e5))
    >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)  # then trainer.fit(...)
    """

    def __init__(
        self,
        plasticity: WeightPlasticity,
        *,
        batches: Iterable[Batch] | None = None,
        loss_fn: LossFunction | None = None,
        kind: FisherKind = "empirical",
    ) -> None:
        super().__init__()
        if (batches is None) != (loss_fn is None):
            given, missing = ("batches", "loss_fn") if loss_fn is None else ("loss_fn", "batches")
            raise InputError(
                f"Expected batches and loss_fn together, but got {given} without {missing}. "
                "Give both, or neither and call plasticity.consolidate yourself."
            )
        self.plasticity = plasticity
        self.batches = batches
        self.loss_fn = loss_fn
        self.kind = kind
        self._followed: list[Optimizer] = []
        self._buffers = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the module its own buffers, before a checkpoint is loaded into them."""
        self._buffers.close()
        self._buffers.enter_context(self.plasticity.buffers_of(pl_module))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow every optimizer that holds shared weights."""
        # The trainer moves the weights to its device and precision at the start, and back to the CPU at the end.
        self.plasticity.follow_weights()
        shared = {id(parameter) for parameter in self.plasticity.shared_parameters}
        for optimizer in trainer.optimizers:
            if any(id(parameter) in shared for group in optimizer.param_groups for parameter in group["params"]):
                self.plasticity.attach(optimizer)
                self._followed.append(optimizer)
        if shared and not self._followed:
            raise InputError(
                f"Expected an optimizer of some of the shared parameters, but got {len(trainer.optimizers)} that hold "
                "none. Return one that trains the shared weights from configure_optimizers."
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Consolidate the model, while it still is on its device."""
        if self.batches is None or self.loss_fn is None:
            return
        # Each of several processes sees its own batches: the wrapper makes the importance the mean over all.
        model = trainer.model if isinstance(trainer.model, DistributedDataParallel) else pl_module
        shared = self.plasticity.shared_parameters
        with trainer.precision_plugin.forward_context():
            importance = diagonal_fisher(
                model, _batches(trainer, self.batches), self.loss_fn, self.kind, parameters=shared
            )
        self.plasticity.consolidate(model, importance)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizers, and take anchors and importances to where the trainer left the weights.

        Other callbacks have ended by then: where one of them, such as weight averaging, has moved what was
        consolidated, there is a warning.
        """
        self._leave()
        self.plasticity.warn_if_moved()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimizers of a `fit` that failed or was interrupted."""
        self._leave()

    def _leave(self) -> None:
        for optimizer in self._followed:
            self.plasticity.detach(optimizer)
        self._followed.clear()
        self.plasticity.follow_weights()
        self._buffers.close()

    def state_dict(self) -> dict[str, Any]:
        """What goes into a checkpoint: the state of the plasticity."""
        return self.plasticity.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it from a checkpoint.

        Args:
            state_dict: From `state_dict`, for the same shared weights in the same order.
        """
        self.plasticity.load_state_dict(state_dict)


class BudgetCallback(Callback):
    """Keeps what a module knows within a budget while `Trainer.fit` trains it on something new.

    The module that `fit` starts from is what is to be kept. At the end of `fit` the weights go back as far as the
    budget needs; checkpoints that were saved before are not within it. The state goes into the trainer's checkpoints
    and comes back with `fit(..., ckpt_path=...)`.

    Args:
        budget: What the old loss may rise by. The module's `forward` gives logits for tokens, or what `loss_fn` takes.
        prompts: As in `Budget.attach`, as are the next two.
        context: See there.
        loss_fn: See there.

    Attributes:
        report: What the last `fit` ended with; None before.

    >>> callback = BudgetCallback(Budget(0.05), prompts=1)
    >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)  # then trainer.fit(...)
    """

    def __init__(
        self,
        budget: Budget,
        *,
        prompts: int | Tensor | None = None,
        context: int | None = None,
        loss_fn: LossFunction | None = None,
    ) -> None:
        super().__init__()
        self.budget = budget
        self.report: BudgetReport | None = None
        self._options: dict[str, Any] = {"prompts": prompts, "context": context, "loss_fn": loss_fn}
        self._keep: Keeper | None = None
        self._saved: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the module as it is, or the old one that a checkpoint has, and follow the optimizers.

        Raises:
            InputError: If a training goes on from a checkpoint that was saved without this callback; or as
                `Budget.attach`.
        """
        if trainer.ckpt_path and self._saved is None:
            raise InputError(
                f"Expected the budget's state in the checkpoint {trainer.ckpt_path}, but got none: it was saved "
                "without this callback, or when its budget was finished. Load the weights and train from the start."
            )
        self._keep = Keeper(self.budget, pl_module, trainer.optimizers, state=self._saved, **self._options)
        self._saved = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the budget hold, while the module still is on its device."""
        if self._keep is not None:
            self.report, self._keep = self._keep.finish(), None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimizers of a `fit` that failed or was interrupted."""
        if self._keep is not None:
            self._keep.leave()
            self._keep = None

    def state_dict(self) -> dict[str, Any]:
        """What goes into a checkpoint: the old weights and texts, and how far it is."""
        return {} if self._keep is None else self._keep.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it from a checkpoint.

        Args:
            state_dict: From `state_dict`, of the same module.
        """
        self._saved = state_dict or None


def _batches(trainer: Trainer, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches on the module's device, inputs in the precision that its steps get them in."""
    for inputs, targets in batches:
        inputs, targets = trainer.strategy.batch_to_device((inputs, targets))
        yield trainer.precision_plugin.convert_input((inputs, targets))
