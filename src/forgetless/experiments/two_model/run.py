"""Every run that a two-model configuration asks for, from where an earlier call was interrupted."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forgetless.checkpoints import Checkpoints, no_checkpoints, seconds_of
from forgetless.data.images import load_images
from forgetless.experiments.two_model.config import Arm, TwoModelConfig, arms
from forgetless.experiments.two_model.records import read_records
from forgetless.experiments.two_model.result import TwoModelResult
from forgetless.experiments.two_model.training import Trainer, origin
from forgetless.runs import RunFolder
from forgetless.tasks import EVALUATION_IMAGES, ImageClassification
from forgetless.training import cpu_arithmetic, expect_memory

FORMAT = 1
"""Of states; one of another format is refused."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for a display.

    Attributes:
        done: Finished arms.
        total: All arms.
        label: What is being trained.
        step: Training step within it.
        num_steps: Its steps in all.
        accuracies: Present test accuracies by model, such as {"A": 0.97, "B": 0.93}.
    """

    done: int
    total: int
    label: str
    step: int
    num_steps: int
    accuracies: Mapping[str, float]


def run(
    config: TwoModelConfig,
    *,
    finished: Sequence[dict[str, Any]] = (),
    checkpoint: Mapping[str, Any] | None = None,
    on_run: Callable[[dict[str, Any]], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
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
    order = {arm: i for i, arm in enumerate(todo)}
    checkpoints = checkpoints or no_checkpoints()
    with cpu_arithmetic(config.threads), checkpoints.kept_if_interrupted():
        _make(config, task, runs, todo, checkpoint, on_run, on_progress, checkpoints)
    return TwoModelResult.of(config, sorted(runs, key=lambda run: order[_arm_of(run)]))


def run_in_folder(
    config: TwoModelConfig, folder: RunFolder, *, on_progress: Callable[[Progress], None] | None = None
) -> TwoModelResult:
    """Make what a run folder lacks of its runs.

    Args:
        config: Of the folder.
        folder: Where records and checkpoints are, and go.
        on_progress: Called now and then while training.

    Returns:
        All runs.

    Raises:
        InputError: As `run`; or if a record is damaged.
    """
    return run(
        config,
        finished=read_records(config, folder),
        checkpoint=folder.load_checkpoint(),
        on_run=folder.append,
        on_progress=on_progress,
        checkpoints=Checkpoints(folder.save_checkpoint, seconds_of(config.checkpoint_every)),
    )


def _make(
    config: TwoModelConfig,
    task: ImageClassification,
    runs: list[dict[str, Any]],
    todo: Sequence[Arm],
    checkpoint: Mapping[str, Any] | None,
    on_run: Callable[[dict[str, Any]], None] | None,
    on_progress: Callable[[Progress], None] | None,
    checkpoints: Checkpoints,
) -> None:
    """Append to `runs` those of the arms that are missing there."""
    by_arm = {_arm_of(run): run for run in runs}
    trainer: Trainer | None = None

    def report(label: str, step: int, num_steps: int, accuracies: Mapping[str, float]) -> None:
        if on_progress is not None:
            on_progress(Progress(len(runs), len(todo), label, step, num_steps, accuracies))

    def point(make_state: Callable[[], Mapping[str, Any]]) -> None:
        known = {"format": FORMAT, "config": config.to_toml()}
        checkpoints.point(lambda: {**make_state(), **known}, keep=True)

    for arm in todo:
        if arm in by_arm:
            continue
        if trainer is None or trainer.origin != origin(arm):
            trainer = Trainer(config, task, arm, report, point, checkpoint)
        record = trainer.run(arm, by_arm.get(dataclasses.replace(arm, protection="wpl")))
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
    return ImageClassification(load_images(config.data, config.data_dir), config.batch_size, config.device)


def check_memory(config: TwoModelConfig, task: ImageClassification) -> None:
    """Refuse sizes that do not fit the machine's memory.

    Args:
        config: Sizes.
        task: The data.

    Raises:
        InputError: If the models need more than there is; it says how much they need.
    """
    width = config.width
    shared = 4 * width * width
    model = shared + width * (math.prod(task.data.image_shape) + task.data.num_classes)
    copies = 2 * config.models + 6  # the models and where they begin; gradients, the optimizer's moments, a protection
    rows = {"coupling": ("coupling_rows", config.coupling_rows), "ogl": ("ogl_directions", max(config.ogl_directions))}
    held = {name: number for protection, (name, number) in rows.items() if protection in config.protection}
    activations = 16 * width * max(task.batch_size, EVALUATION_IMAGES)
    numbers = copies * model + sum(held.values()) * shared + activations
    sizes = {"width": width, "batch_size": config.batch_size, "models": config.models, **held}
    expect_memory(4 * numbers, config.device, "models that fit", sizes)


def _arm_of(run: Mapping[str, Any]) -> Arm:
    return Arm(run["seed"], run["shared"], run["convergence"], run["protection"], run["alpha"])
