"""Every run that a two-model configuration asks for, from where an earlier call was interrupted."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from forgetless.checkpoints import Checkpoints, no_checkpoints
from forgetless.experiments.arms import in_order
from forgetless.experiments.two_model.config import Arm, TwoModelConfig, arms
from forgetless.experiments.two_model.records import RunRecord
from forgetless.experiments.two_model.result import TwoModelResult
from forgetless.experiments.two_model.training import Trainer, origin
from forgetless.progress import OnProgress, Progress
from forgetless.protection import PROTECTIONS
from forgetless.tasks.images import EVALUATION_IMAGES, ImageClassification, ImageOptions
from forgetless.training import cpu_arithmetic, expect_device, expect_memory

FORMAT = 2
"""Of states; one of another format is refused."""


def run(
    config: TwoModelConfig,
    *,
    finished: Sequence[RunRecord] = (),
    checkpoint: Mapping[str, Any] | None = None,
    on_run: Callable[[RunRecord], None] | None = None,
    on_progress: OnProgress | None = None,
    checkpoints: Checkpoints | None = None,
) -> TwoModelResult:
    """Make every run that the configuration asks for and that is not finished yet.

    Args:
        config: What to do.
        finished: Runs of an earlier, interrupted call with the same configuration.
        checkpoint: The newest state of that call.
        on_run: Called with each new run as soon as it is finished.
        on_progress: Called now and then while training.
        checkpoints: Stores states between the trainings of a run.

    Returns:
        All runs, finished and new. Numbers do not depend on where an earlier call was interrupted.

    Raises:
        InputError: If the data is missing or damaged, the sizes do not fit the memory, or the checkpoint is of another
            configuration.
    """
    if checkpoint is not None:
        config.expect_own_state(checkpoint, FORMAT)
    task = load_task(config)
    check_memory(config, task)
    runs = list(finished)
    todo = arms(config)
    checkpoints = checkpoints or no_checkpoints()
    with cpu_arithmetic(config.run.threads), checkpoints.kept_if_interrupted():
        _make(config, task, runs, todo, checkpoint, on_run, on_progress, checkpoints)
    return TwoModelResult.of(config, in_order(runs, todo))


def _make(
    config: TwoModelConfig,
    task: ImageClassification,
    runs: list[RunRecord],
    todo: Sequence[Arm],
    checkpoint: Mapping[str, Any] | None,
    on_run: Callable[[RunRecord], None] | None,
    on_progress: OnProgress | None,
    checkpoints: Checkpoints,
) -> None:
    """Append to `runs` those of the arms that are missing there."""
    by_arm = {run.arm: run for run in runs}
    trainer: Trainer | None = None

    def report(label: str, step: int, num_steps: int, accuracies: Mapping[str, float]) -> None:
        if on_progress is not None:
            told = "  ".join(f"{name} {100 * value:5.1f} %" for name, value in accuracies.items())
            on_progress(Progress(len(runs) + step / max(1, num_steps), len(todo), label, told))

    def point(make_state: Callable[[], Mapping[str, Any]]) -> None:
        known = {"format": FORMAT, "config": config.to_dict()}
        checkpoints.point(lambda: {**make_state(), **known}, keep=True)

    for arm in todo:
        if arm in by_arm:
            continue
        if trainer is None or trainer.origin != origin(arm):
            trainer = Trainer(config, task, arm, report, point, checkpoint)
        matched = PROTECTIONS[arm.protection].matches
        followed = None if matched is None else by_arm.get(dataclasses.replace(arm, protection=matched))
        record = trainer.run(arm, followed)
        by_arm[arm] = record
        runs.append(record)
        if on_run is not None:
            on_run(record)


def load_task(config: TwoModelConfig) -> ImageClassification:
    """The data that a configuration names, as a task.

    Args:
        config: The configuration.

    Returns:
        Image classification on the configured device.
    """
    expect_device(config.run.device)
    return ImageClassification.load(
        config.data.name,
        config.resources.data_dir,
        ImageOptions(),
        batch_size=config.schedule.batch_size,
        device=config.run.device,
    )


def check_memory(config: TwoModelConfig, task: ImageClassification) -> None:
    """Refuse sizes that do not fit the machine's memory.

    Args:
        config: Sizes.
        task: The data.

    Raises:
        InputError: If the models need more than there is; it says how much they need.
    """
    width = config.chain.width
    shared = 4 * width * width
    model = shared + width * (math.prod(task.data.image_shape) + task.data.num_classes)
    copies = 2 * config.chain.models + 4  # the models and where they begin; gradients, the optimizer's moments
    held = max(each.kind.held_copies(each, task.num_outputs) for each in config.protections)
    activations = 16 * width * max(task.batch_size, EVALUATION_IMAGES)
    numbers = copies * model + max(2, held) * shared + activations
    sizes = {"width": width, "batch_size": config.schedule.batch_size, "models": config.chain.models}
    for each in config.protections:
        sizes |= each.kind.sizes(each)
    expect_memory(round(4 * numbers), config.run.device, "models that fit", sizes)
