"""Every seed of a landscape, from where an earlier call was interrupted."""

import math
from collections.abc import Mapping

from forgetless.checkpoints import Checkpoints, seconds_of
from forgetless.experiments.landscape.config import LandscapeConfig
from forgetless.experiments.landscape.records import place_of, places, read_records
from forgetless.experiments.landscape.walking import Make, Walker
from forgetless.experiments.two_model.config import Wiring
from forgetless.experiments.two_model.running import check_memory, load_task
from forgetless.progress import OnProgress, Progress
from forgetless.runs import RunFolder
from forgetless.tasks.images import ImageClassification
from forgetless.training import cpu_arithmetic, expect_memory

FORMAT = 1
"""Of states; one of another format is refused."""


# Of a path: its points, their moves, all paths together, and these in double precision.
_COPIES = 5


def check(config: LandscapeConfig, task: ImageClassification) -> None:
    """Refuse sizes that do not fit the machine's memory.

    Args:
        config: Sizes.
        task: The data.

    Raises:
        InputError: If the models or the paths of a seed need more than there is.
    """
    check_memory(config.two_models, task)
    pair, schedule = config.pair, config.schedule
    pixels = math.prod(task.data.image_shape) if pair.wiring is Wiring.PREFIX else pair.width
    num_weights = pair.width * (pixels + (pair.shared - 1) * pair.width)
    points = (schedule.iterations // schedule.evaluate_every + 5) * len(config.protections)
    sizes = {"width": pair.width, "iterations": schedule.iterations, "evaluate_every": schedule.evaluate_every}
    expect_memory(4 * _COPIES * points * num_weights, config.run.device, "paths that fit", sizes)


def run_in_folder(config: LandscapeConfig, folder: RunFolder, *, on_progress: OnProgress | None = None) -> None:
    """Make what a run folder lacks of its records.

    Args:
        config: Of the folder.
        folder: Where records and checkpoints are, and go.
        on_progress: Called now and then while training.

    Raises:
        InputError: If data is missing or damaged, sizes do not fit the memory, a record is damaged, the checkpoint is
            of another configuration, or the paths do not span a plane.
    """
    made = {place_of(record) for record in read_records(config, folder)}
    state = folder.load_checkpoint()
    if state is not None:
        config.expect_own_state(state, FORMAT)
    task = load_task(config.two_models)
    check(config, task)
    total = len(places(config))
    known = {"format": FORMAT, "config": config.to_dict()}
    checkpoints = Checkpoints(folder.save_checkpoint, seconds_of(config.resources.checkpoint_every))
    arms_begun = 0

    def report(label: str, step: int, num_steps: int, accuracies: Mapping[str, float]) -> None:
        if on_progress is not None:
            told = "  ".join(f"{name} {100 * value:5.1f} %" for name, value in accuracies.items())
            on_progress(Progress(min(total, len(made) + arms_begun + step / max(1, num_steps)), total, label, told))

    def point(make_state: Make) -> None:
        checkpoints.point(lambda: {**make_state(), **known}, keep=True)

    with cpu_arithmetic(config.run.threads), checkpoints.kept_if_interrupted():
        for seed in config.run.all_seeds:
            arms = [arm for arm in config.arms if arm.seed == seed]
            if {place for place in places(config) if place[0] == seed} <= made:
                continue
            walker = Walker(config, task, arms, report, point, state)

            def after_arm(walker: Walker = walker) -> None:
                folder.save_checkpoint({**walker.state(), **known})
                checkpoints.stored()

            walker.walk(after_arm)
            report(f"seed {seed}: the plane", 0, 1, {})
            for record in walker.records():
                if place_of(record) not in made:
                    folder.append(record.to_dict())
                    made.add(place_of(record))
