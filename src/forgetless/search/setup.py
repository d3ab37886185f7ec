"""What a search begins with: data, space, supernet, optimizer; and whether the memory is enough for it."""

import hashlib
from typing import Any

import torch

from forgetless import ranks
from forgetless.errors import InputError
from forgetless.search.config import SearchConfig
from forgetless.spaces import SearchSpace, Space
from forgetless.supernet import Supernet
from forgetless.tasks import TASKS, Task
from forgetless.training import expect_device, expect_memory


def load_task(config: SearchConfig) -> Task[Any]:
    """The data that a configuration names, as the task of its space.

    Args:
        config: The configuration.

    Raises:
        InputError: If the data is missing or damaged, or this machine does not have the device.
    """
    expect_device(config.run.device)
    return TASKS[config.space.kind.task].load(
        config.data.name,
        config.resources.data_dir,
        config.task,
        batch_size=config.schedule.batch_size,
        device=config.run.device,
    )


def make_search_space(config: SearchConfig) -> SearchSpace:
    """The space that a configuration names, with its supernet.

    Args:
        config: The configuration.
    """
    made: SearchSpace = config.space.kind(config.space)
    return made


def make_space(config: SearchConfig) -> Space[Any]:
    """What a configuration's search chooses from.

    Args:
        config: The configuration.
    """
    return make_search_space(config).space


def memory_bytes(config: SearchConfig, task: Task[Any], space: SearchSpace | None = None) -> int:
    """About how much memory a search takes: weights, gradients, anchors, importances, and a batch's activations.

    Args:
        config: Sizes.
        task: Decides inputs and outputs.
        space: The space; the configuration's if None.

    Returns:
        Bytes.
    """
    state = int(config.optimizer.momentum > 0) if config.optimizer.name == "sgd" else 2
    # The weights, those before the step and before the model, a difference; and what only one architecture's weights
    # have: gradients, their mean and squares, the pull. That is less than one copy, but for the smallest spaces. Then
    # what a protection holds: one arm runs at a time.
    held = max(each.kind.held_copies(each, task.num_outputs) for each in config.protections)
    copies = 5 + state + held + config.reward.averages
    copies += (1 + state + held) * bool(config.interference.every)  # what is restored afterwards
    return (space or make_search_space(config)).memory_bytes(task, round(copies))


def check_memory(config: SearchConfig, task: Task[Any], space: SearchSpace | None = None) -> None:
    """Refuse sizes that do not fit the machine's memory.

    Args:
        config: Sizes.
        task: The data.
        space: The space; the configuration's if None.

    Raises:
        InputError: If the search needs more than there is; it says how much it needs.
    """
    space = space or make_search_space(config)
    told: dict[str, object] = {**space.sizes, "batch_size": config.schedule.batch_size}
    for each in config.protections:
        told |= each.kind.sizes(each)
    expect_memory(memory_bytes(config, task, space), config.run.device, "a search that fits", told)


def check_importance(config: SearchConfig, task: Task[Any]) -> None:
    """Refuse an estimate of the Fisher information from training batches that are all the same.

    It takes the variance of one example's gradient from that of batches, which of whole splits is 0 but for dropout.

    Args:
        config: Where the Fisher information comes from.
        task: The data.

    Raises:
        InputError: If a protection needs it, and every batch has all training examples.
    """
    is_asked = config.importance.source == "training" and any(each.kind.uses_fisher for each in config.protections)
    if is_asked and task.has_one_batch:
        raise InputError(
            f"Expected importance to be held-out for batches of all {task.batch_size} training examples, but got "
            "training. Take --importance held-out, or a smaller --batch-size."
        )


def check_ranks(config: SearchConfig, task: Task[Any]) -> None:
    """Refuse a search that several processes of torchrun cannot make together.

    Args:
        config: Of the search.
        task: The data.

    Raises:
        InputError: As `check_shares`; or if a protection does not do the same in all.
    """
    check_shares(config.run.device, task)
    for each in config.protections:
        if ranks.num_processes() > 1 and not each.kind.works_in_ranks:
            raise InputError(
                f"Expected protections that do the same in {ranks.num_processes()} processes, but got "
                f"{each.kind.name}. Leave it or torchrun out."
            )


def check_shares(device: str, task: Task[Any]) -> None:
    """Refuse batches that several processes of torchrun cannot share.

    Args:
        device: Where they train.
        task: The data.

    Raises:
        InputError: If batches have no equal parts, or a process has no device of its own.
    """
    if ranks.num_processes() == 1:
        return
    ranks.expect_divisible(task.batch_size)
    num_devices = torch.cuda.device_count()
    if device != "cpu" and (device != "cuda" or ranks.num_local() > num_devices):
        raise InputError(
            f"Expected the device cpu, or cuda with a GPU for each of {ranks.num_local()} processes, but got {device} "
            f"and {num_devices} GPUs. Leave the number of the device out, or start fewer processes."
        )


def make_supernet(device: str, task: Task[Any], space: SearchSpace, seed: int) -> Supernet[Any]:
    """The supernet of a space for a task, with weights drawn from a seed; the global random state is left alone.

    Args:
        device: Where it is.
        task: Decides inputs and outputs.
        space: The space.
        seed: Of the initial weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        supernet = space.make_supernet(task)
    return supernet.to(device)


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
