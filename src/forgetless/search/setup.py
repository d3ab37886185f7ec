"""What a search begins with: data, space, supernet, optimizer; and whether the memory is enough for it."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from forgetless.architecture import CellSpace, Nas201Space, RecurrentSpace, Space
from forgetless.curvature import MOST_OUTPUTS
from forgetless.data import load_images, load_text
from forgetless.protection import PROTECTIONS, WPL
from forgetless.search.config import OPERATIONS, SearchConfig
from forgetless.supernets.cell import CellSupernet
from forgetless.supernets.nas201 import Nas201Supernet
from forgetless.supernets.recurrent import RecurrentSupernet
from forgetless.tasks import ImageClassification, LanguageModelling, Task
from forgetless.training import expect_memory


def load_task(config: SearchConfig) -> Task[Any]:
    """The data that a configuration names, as a task.

    Args:
        config: The configuration.
    """
    if config.space == "recurrent":
        text = load_text(config.data, config.data_dir, config.vocabulary)
        return LanguageModelling(
            text, config.batch_size, config.num_steps, independent=config.independent, device=config.device
        )
    images = load_images(config.data, config.data_dir)
    return ImageClassification(images, config.batch_size, config.device, augment=config.augment)


def make_space(config: SearchConfig) -> Space[Any]:
    """The space that a configuration names.

    Args:
        config: The configuration.
    """
    operations = config.operations or OPERATIONS[config.space]
    if config.space == "recurrent":
        return RecurrentSpace(config.nodes, operations)
    return CellSpace(config.nodes, operations) if config.space == "cell" else Nas201Space(operations)


def memory_bytes(config: SearchConfig, task: Task[Any]) -> int:
    """About how much memory a search takes: weights, gradients, anchors, importances, and a batch's activations.

    Args:
        config: Sizes.
        task: Decides vocabulary, or image shape and classes.

    Returns:
        Bytes.
    """
    state = 2 if config.optimizer == "adam" else int(config.momentum > 0)
    # The weights, those before the step and before the model, a difference; and what only one architecture's weights
    # have: gradients, their mean and squares, the pull. That is less than one copy, but for the smallest spaces. Then
    # anchor and importance, or directions.
    copies = 5 + state
    held = 2 * any(issubclass(PROTECTIONS[name], WPL) for name in config.protection if name in PROTECTIONS)
    held += config.ogl_directions * ("ogl" in config.protection)
    if "coupling" in config.protection:
        num_outputs = task.data.num_classes if isinstance(task, ImageClassification) else math.inf
        new = config.coupling_examples * (int(num_outputs) if num_outputs <= MOST_OUTPUTS else 1)
        # The anchor; rows kept, the columns of those that move, and new ones, once more where all are put together.
        held += 1 + 2 * (config.coupling_rows + new)
    copies += held
    copies += (1 + state + held) * bool(config.interference_every)  # what is restored afterwards
    space = make_space(config)
    if isinstance(task, LanguageModelling):
        assert isinstance(space, RecurrentSpace)
        sizes = (task.data.num_words, config.units, space, config.batch_size, config.num_steps)
        return RecurrentSupernet.memory_bytes(*sizes, copies=copies)
    assert isinstance(task, ImageClassification)
    shape, classes = task.data.image_shape, task.data.num_classes
    if isinstance(space, CellSpace):
        return CellSupernet.memory_bytes(
            shape, classes, config.units, config.cells_per_stage, space, batch_size=config.batch_size, copies=copies
        )
    return Nas201Supernet.memory_bytes(
        shape, classes, config.units, config.cells_per_stage, batch_size=config.batch_size, copies=copies
    )


def check_memory(config: SearchConfig, task: Task[Any]) -> None:
    """Refuse sizes that do not fit the machine's memory.

    Args:
        config: Sizes.
        task: The data.

    Raises:
        InputError: If the search needs more than there is; it says how much it needs.
    """
    sizes = ["units", "batch_size", *(["nodes"] if config.space != "nas201" else [])]
    for protection, size in (("ogl", "ogl_directions"), ("coupling", "coupling_rows")):
        sizes += [size] * (protection in config.protection)
    told = {name: getattr(config, name) for name in sizes}
    expect_memory(memory_bytes(config, task), config.device, "a search that fits", told)


def make_supernet(config: SearchConfig, task: Task[Any], space: Space[Any], seed: int) -> nn.Module:
    """The supernet of a space for a task, with weights drawn from a seed; the global random state is left alone.

    Args:
        config: Sizes.
        task: Decides vocabulary, or image shape and classes.
        space: The space.
        seed: Of the initial weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        supernet: nn.Module
        if isinstance(task, LanguageModelling):
            assert isinstance(space, RecurrentSpace)
            supernet = RecurrentSupernet(
                task.data.num_words,
                config.units,
                space,
                dropout_input=config.dropout,
                dropout_output=config.dropout,
                weight_drop=config.weight_drop,
            )
        elif isinstance(task, ImageClassification):
            sizes = (task.data.image_shape, task.data.num_classes, config.units, config.cells_per_stage)
            supernet = CellSupernet(*sizes, space) if isinstance(space, CellSpace) else Nas201Supernet(*sizes)
    return supernet.to(config.device)


def fixed_sample(space: Space[Any], number: int, seed: int) -> list[Any]:
    """Architectures drawn uniformly, the first of them the same for every number; distinct as long as there are more.

    Args:
        space: What to draw from.
        number: How many.
        seed: Of a generator of its own.
    """
    generator = generator_for(seed, "interference")
    drawn: dict[Any, None] = {}
    while len(drawn) < min(number, space.size):
        drawn[space.sample(generator)] = None
    return [*drawn, *(space.sample(generator) for _ in range(number - len(drawn)))]


def generator_for(seed: int, purpose: str) -> torch.Generator:
    """A generator that is independent of those of other purposes and seeds.

    Args:
        seed: Of the arm.
        purpose: What is drawn.
    """
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def make_optimizer(config: SearchConfig, supernet: nn.Module, shared: Sequence[nn.Parameter] = ()) -> Optimizer:
    """The optimizer of a supernet; the shared weights are its first group, if there are any.

    Args:
        config: Optimizer and learning rate.
        supernet: Whose weights to train.
        shared: Those of them that are protected.
    """
    held = {id(weight) for weight in shared}
    others = [weight for weight in supernet.parameters() if id(weight) not in held]
    groups = [{"params": weights} for weights in (list(shared), others) if weights]
    if config.optimizer == "sgd":
        return SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    return Adam(groups, lr=config.learning_rate)
