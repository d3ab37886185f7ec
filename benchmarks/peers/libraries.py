"""The same two questions to each library: the Fisher of these batches, and a training step beside earlier tasks.

Each is called as its own documentation calls it, over as many examples as there are, and accumulates over tasks as by
its default. A Fisher takes a model in evaluation mode and batches of images (B, 784) and labels (B,), and gives a
tensor per weight in the model's order. A step takes the model, the number of earlier tasks, each with importances of
its own, and the batch to train on; it gives a function that takes one step of SGD, and the tensors held for it.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Batch = tuple[Tensor, Tensor]
Step = Callable[[], object]

STRENGTH = 1.0
LEARNING_RATE = 1e-3


def _with_penalty(
    model: nn.Module,
    batch: Batch,
    penalty: Callable[[], Any],
    optimizer: torch.optim.Optimizer | None = None,
) -> Step:
    """One step of SGD on the mean loss of a batch plus a penalty."""
    inputs, labels = batch
    sgd = optimizer or torch.optim.SGD(model.parameters(), LEARNING_RATE)

    def step() -> None:
        sgd.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(inputs), labels) + penalty()
        loss.backward()
        sgd.step()

    return step


def _shaped(flat: Tensor, model: nn.Module) -> list[Tensor]:
    """A vector over all weights, cut into the shapes of a model's weights."""
    sizes = [p.numel() for p in model.parameters()]
    return [part.view_as(p) for part, p in zip(flat.split(sizes), model.parameters(), strict=True)]  # type: ignore[no-untyped-call]


def _plain_fisher(model: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    """The yardstick: one forward and backward pass."""
    for inputs, labels in batches:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    return []


def _plain_step(model: nn.Module, tasks: int, batch: Batch) -> tuple[Step, list[Tensor]]:
    """The yardstick: no protection."""
    del tasks
    return _with_penalty(model, batch, lambda: 0.0), []


def _forgetless_fisher(model: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    """`diagonal_fisher`, its default."""
    from forgetless import diagonal_fisher

    return list(diagonal_fisher(model, batches, F.cross_entropy).values())


def _forgetless_step(model: nn.Module, tasks: int, batch: Batch) -> tuple[Step, list[Tensor]]:
    """`WeightPlasticity`: one anchor and one importance for all tasks, a proximal step after the optimizer's."""
    from forgetless import WeightPlasticity

    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    plasticity = WeightPlasticity(model, STRENGTH).attach(optimizer)
    for _ in range(tasks):
        plasticity.consolidate(model, {name: torch.ones_like(p) for name, p in model.named_parameters()})
    held = (
        [plasticity.anchor(p) for p in model.parameters()],
        [plasticity.importance(p) for p in model.parameters()],
    )
    return _with_penalty(model, batch, lambda: 0.0, optimizer), [
        t for tensors in held for t in tensors if t is not None
    ]


def _avalanche_fisher(model: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    """`EWCPlugin`. It takes a data set and makes the batches."""
    from avalanche.training.plugins import EWCPlugin

    inputs, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    data = TensorDataset(inputs, labels, torch.zeros(len(labels)))
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    found = EWCPlugin(STRENGTH).compute_importances(
        model, nn.CrossEntropyLoss(), optimizer, data, "cpu", len(batches[0][0])
    )
    return [importance.data for importance in found.values()]


def _avalanche_step(model: nn.Module, tasks: int, batch: Batch) -> tuple[Step, list[Tensor]]:
    """`EWCPlugin`: an anchor and an importance per task."""
    from avalanche.training.plugins import EWCPlugin
    from avalanche.training.utils import copy_params_dict, zerolike_params_dict

    plugin = EWCPlugin(STRENGTH)
    for task in range(tasks):
        plugin.saved_params[task] = copy_params_dict(model)
        ones = zerolike_params_dict(model)
        for importance in ones.values():
            importance.data += 1
        plugin.update_importances(ones, task)
    strategy = SimpleNamespace(
        clock=SimpleNamespace(train_exp_counter=tasks), device="cpu", model=model, loss=torch.zeros(())
    )

    def penalty() -> Any:
        strategy.loss = torch.zeros(())
        plugin.before_backward(strategy)
        return strategy.loss

    kept = [
        p.data for kind in (plugin.saved_params, plugin.importances) for task in kind.values() for p in task.values()
    ]
    return _with_penalty(model, batch, penalty), kept


def _clearn_fisher(model: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    """`EWC`, over all examples."""
    from clearn.strategies.ewc import EWC

    strategy = EWC(model, STRENGTH, n_fisher_samples=sum(len(labels) for _, labels in batches))
    strategy.consolidate(batches)
    return list(strategy.state_dict()["fisher"].values())


def _clearn_step(model: nn.Module, tasks: int, batch: Batch) -> tuple[Step, list[Tensor]]:
    """`EWC`: one importance for all tasks."""
    from clearn.strategies.ewc import EWC

    strategy = EWC(model, STRENGTH)
    for _ in range(tasks):
        strategy.consolidate([batch])
    state = strategy.state_dict()
    return _with_penalty(model, batch, strategy.penalty), [
        *state["fisher"].values(),
        *state["optimal_params"].values(),
    ]


def _clarena_fisher(model: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    """`EWC`, at the end of training, divided by the number of examples as it divides it."""
    from clarena.cl_algorithms.ewc import EWC

    # What the method reads of its Lightning module, without the trainer that would run it.
    module = SimpleNamespace(
        backbone=model,
        criterion=nn.CrossEntropyLoss(),
        device="cpu",
        eval=model.eval,
        forward=lambda inputs, **_: (model(inputs), {}),
        task_id=1,
        trainer=SimpleNamespace(datamodule=SimpleNamespace(train_dataloader=lambda: batches)),
    )
    total = EWC.accumulate_fisher_information_on_train_end(module)
    num_examples = sum(len(labels) for _, labels in batches)  # by which its `on_train_end` divides
    return [importance.detach() / num_examples for importance in total.values()]


def _clarena_step(model: nn.Module, tasks: int, batch: Batch) -> tuple[Step, list[Tensor]]:
    """`EWC`: an importance and a copy of the model per task."""
    from copy import deepcopy

    from clarena.cl_algorithms.regularizers import ParameterChangeReg

    regularizer = ParameterChangeReg(factor=STRENGTH)
    earlier = [deepcopy(model) for _ in range(tasks)]
    ones = [{name: torch.ones_like(p) for name, p in model.named_parameters()} for _ in range(tasks)]

    def penalty() -> Any:
        return sum(
            0.5 * regularizer(target_model=model, ref_model=ref, weights=weights)
            for ref, weights in zip(earlier, ones, strict=True)
        )

    held = [p.data for ref in earlier for p in ref.parameters()] + [t for task in ones for t in task.values()]
    return _with_penalty(model, batch, penalty), held


def _laplace_fisher(model: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    """`BackPackEF.diag`, its diagonal empirical Fisher."""
    from laplace.curvature import BackPackEF

    curvature = BackPackEF(model, "classification")
    total: Any = 0
    for inputs, labels in batches:
        model.zero_grad(set_to_none=True)
        total = total + curvature.diag(inputs, labels)[1]
    num_examples = sum(len(labels) for _, labels in batches)
    return _shaped(total / num_examples, model)


def _nngeometry_fisher(model: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    """`PMatDiag` of the loss of each example. It takes a data set and makes the batches."""
    from nngeometry.backend import TorchHooksJacobianBackend
    from nngeometry.layercollection import LayerCollection
    from nngeometry.object import PMatDiag

    inputs, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    generator = TorchHooksJacobianBackend(
        model=model,
        layer_collection=LayerCollection.from_model(model),
        function=lambda *batch: F.cross_entropy(model(batch[0]), batch[1], reduction="none")[:, None],
    )
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=len(batches[0][0]))
    return _shaped(PMatDiag(generator=generator, examples=loader).data, model)


def _backpack_fisher(model: nn.Module, batches: Sequence[Batch]) -> list[Tensor]:
    """`SumGradSquared` of a summed loss."""
    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared

    extended, loss = extend(model), extend(nn.CrossEntropyLoss(reduction="sum"))
    totals = [torch.zeros_like(p) for p in model.parameters()]
    for inputs, labels in batches:
        model.zero_grad(set_to_none=True)
        with backpack(SumGradSquared()):
            loss(extended(inputs), labels).backward()
        for total, parameter in zip(totals, model.parameters(), strict=True):
            total += parameter.sum_grad_squared  # type: ignore[attr-defined]
    num_examples = sum(len(labels) for _, labels in batches)
    return [total / num_examples for total in totals]


FISHERS = {
    "plain": _plain_fisher,
    "forgetless": _forgetless_fisher,
    "Avalanche 0.6.0": _avalanche_fisher,
    "clearn-ai 0.3.0": _clearn_fisher,
    "CLArena 1.1.0": _clarena_fisher,
    "laplace-torch 0.3": _laplace_fisher,
    "nngeometry 0.4": _nngeometry_fisher,
    "BackPACK 1.7.1": _backpack_fisher,
}
"""By library: its Fisher. The first is the yardstick."""

STEPS = {
    "plain": _plain_step,
    "forgetless": _forgetless_step,
    "Avalanche 0.6.0": _avalanche_step,
    "clearn-ai 0.3.0": _clearn_step,
    "CLArena 1.1.0": _clarena_step,
}
"""By library: its protected step. The first is the yardstick."""
