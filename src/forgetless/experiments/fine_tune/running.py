"""Every run that a fine-tuning configuration asks for, from where an earlier call was interrupted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from forgetless.checkpoints import Checkpoints, no_checkpoints
from forgetless.experiments.fine_tune.config import FineTuneConfig, arms
from forgetless.experiments.fine_tune.records import FineTuneRecord
from forgetless.experiments.fine_tune.result import FineTuneResult
from forgetless.experiments.fine_tune.text import EVALUATION_WINDOWS, Lines, Windows, load_lines
from forgetless.experiments.fine_tune.training import Texts, Trainer, check_budgets
from forgetless.progress import OnProgress, Progress
from forgetless.training import cpu_arithmetic, expect_device, expect_memory

if TYPE_CHECKING:
    from forgetless.experiments.fine_tune.language import StartModel

FORMAT = 1
"""Of states; one of another format is refused."""


def run(
    config: FineTuneConfig,
    *,
    finished: Sequence[FineTuneRecord] = (),
    checkpoint: Mapping[str, Any] | None = None,
    on_run: Callable[[FineTuneRecord], None] | None = None,
    on_progress: OnProgress | None = None,
    checkpoints: Checkpoints | None = None,
) -> FineTuneResult:
    """Make every run that the configuration asks for and that is not finished yet.

    Args:
        config: What to do.
        finished: Runs of an earlier, interrupted call with the same configuration.
        checkpoint: The newest state of that call.
        on_run: Called with each new run as soon as it is finished.
        on_progress: Called now and then while training.
        checkpoints: Stores states between trainings.

    Returns:
        All runs, finished and new. Numbers do not depend on where an earlier call was interrupted.

    Raises:
        InputError: If a text is missing, damaged, too short or in no words that the model knows, the model cannot be
            read, the sizes do not fit the memory, a protection does not fit the model, a budget is above the loss on
            the old text, or the checkpoint is of another configuration.
    """
    if checkpoint is not None:
        config.expect_own_state(checkpoint, FORMAT)
    texts = load_texts(config)
    check_memory(config, texts)
    check_model(config, texts)
    made = {record.arm: record for record in finished}
    todo = arms(config)
    checkpoints = checkpoints or no_checkpoints()

    def report(label: str, step: int, num_steps: int, losses: Mapping[str, float]) -> None:
        if on_progress is not None:
            told = "  ".join(f"{name} {value:6.3f}" for name, value in losses.items())
            on_progress(Progress(len(made) + step / max(1, num_steps), len(todo), label, told))

    def point(make_state: Callable[[], Mapping[str, Any]]) -> None:
        known = {"format": FORMAT, "config": config.to_dict()}
        checkpoints.point(lambda: {**make_state(), **known}, keep=True)

    with cpu_arithmetic(config.run.threads), checkpoints.kept_if_interrupted():
        trainer: Trainer | None = None
        for arm in todo:
            if arm in made:
                continue
            if trainer is None or trainer.seed != arm.seed:
                trainer = Trainer(config, texts, arm.seed, report, point, checkpoint)
            made[arm] = trainer.run(arm)
            if on_run is not None:
                on_run(made[arm])
    return FineTuneResult.of(config, [made[arm] for arm in todo])


def load_texts(config: FineTuneConfig) -> Texts:
    """The model to start from, and the texts as it reads them.

    Args:
        config: The configuration.

    Raises:
        InputError: If a text is missing, damaged, too short, or in no words that the model knows; or the model cannot
            be read.
    """
    expect_device(config.run.device)
    lines = {name: load_lines(name, config.resources.data_dir) for name in (config.texts.old, *config.texts.to)}
    start = start_model(config, lines[config.texts.old])
    context, size = start.context, config.schedule.batch_size
    found = {name: Windows(each, start.language, size, context, config.run.device) for name, each in lines.items()}
    return Texts(start, found[config.texts.old], {name: found[name] for name in config.texts.to})


def start_model(config: FineTuneConfig, old: Lines) -> StartModel:
    """The model that a configuration starts from.

    Args:
        config: The configuration.
        old: The text that it knows.
    """
    model = config.model
    if model.folder is not None:
        from forgetless.experiments.fine_tune.hugging_face import FolderModel

        return FolderModel(model.folder, model.context)
    from forgetless.experiments.fine_tune.transformer import FreshTransformer

    return FreshTransformer(
        old.splits["train"],
        num_tokens=model.num_tokens,
        width=model.width,
        layers=model.layers,
        heads=model.heads,
        context=model.context,
    )


def check(config: FineTuneConfig) -> None:
    """Refuse what could not be finished.

    Args:
        config: What is asked for.

    Raises:
        InputError: As `load_texts`; or if sizes do not fit the memory, a protection does not fit the model, or a budget
            is above the loss of guessing.
    """
    texts = load_texts(config)
    check_memory(config, texts)
    check_model(config, texts)
    check_budgets(config, math.log(texts.start.language.num_tokens), "guessing")


def check_memory(config: FineTuneConfig, texts: Texts) -> None:
    """Refuse sizes that do not fit the machine's memory.

    Args:
        config: Sizes.
        texts: The model and the data.

    Raises:
        InputError: If training needs more than there is; it says how much.
    """
    model, context, num_tokens = config.model, texts.old.context, texts.start.language.num_tokens
    held = max(each.kind.held_copies(each, context * num_tokens) for each in config.protections)
    copies = 6 + max(2, held)  # as it was, as it is, and as it is stored; gradients, the optimizer's moments
    # Per token and block about 16 numbers per width and one per head and token before it; logits and their gradient.
    per_token = model.layers * (16 * model.width + model.heads * context) + 3 * num_tokens
    most = max(config.schedule.batch_size, EVALUATION_WINDOWS)
    numbers = copies * texts.start.num_weights + most * context * per_token
    sizes: dict[str, object] = {
        **{name: getattr(model, name) for name in ("layers", "width", "context", "num_tokens")},
        "batch_size": config.schedule.batch_size,
    }
    for each in config.protections:
        sizes |= each.kind.sizes(each)
    expect_memory(round(4 * numbers), config.run.device, "a model that fits", sizes)


def check_model(config: FineTuneConfig, texts: Texts) -> None:
    """Refuse protections that cannot be used with the model.

    Args:
        config: With its protections.
        texts: The model.

    Raises:
        InputError: If one cannot, or a package that it needs is missing.
    """
    model = texts.start.make(config.run.first_seed)
    for each in config.protections:
        each.kind.check_model(model, each)
