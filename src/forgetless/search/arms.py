"""Every search that a configuration asks for, one after the other, from where an earlier call was interrupted."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch

from forgetless.checkpoints import Checkpoints, no_checkpoints
from forgetless.errors import InputError
from forgetless.interference import InterferenceRecord
from forgetless.progress import OnProgress, Progress
from forgetless.protection import ProtectionOptions
from forgetless.search.config import SearchArm, SearchConfig, search_arms
from forgetless.search.epoch import Search
from forgetless.search.records import DerivedRecord, EpochRecord, SearchRecord, search_record
from forgetless.search.result import SearchResult
from forgetless.search.setup import check_importance, check_memory, fixed_sample, load_task, make_search_space
from forgetless.spaces import SearchSpace
from forgetless.tasks import Task
from forgetless.training import cpu_arithmetic

FORMAT = 3
"""Of states; one of another format is refused."""

OnEpoch: TypeAlias = Callable[[SearchRecord, dict[str, Any]], None]
"""Is given a record, and the state to go on from."""


def run(
    config: SearchConfig,
    *,
    records: Sequence[SearchRecord] = (),
    checkpoint: Mapping[str, Any] | None = None,
    on_epoch: OnEpoch | None = None,
    on_progress: OnProgress | None = None,
    checkpoints: Checkpoints | None = None,
    space: SearchSpace | None = None,
    task: Task[Any] | None = None,
) -> list[SearchRecord]:
    """Make every search that the configuration asks for, going on where an earlier call was interrupted.

    Args:
        config: What to do.
        records: What earlier calls recorded, as `reconcile` leaves it.
        checkpoint: The newest state of these calls.
        on_epoch: Called after each record with the record and the state to go on from; store the state first.
        on_progress: Called within epochs.
        checkpoints: Stores states within epochs and within the derivation.
        space: The space with its supernet; the configuration's if None.
        task: The data; the configuration's if None.

    Returns:
        All records, one per epoch (none if no shared weights are trained) and one of what was derived per arm. Numbers
        but seconds do not depend on interruptions.

    Raises:
        InputError: If the data is missing or damaged, the sizes do not fit the memory, or the checkpoint is of another
            configuration (the message names the options).
    """
    if checkpoint is not None:
        config.expect_own_state(checkpoint, FORMAT)
    with cpu_arithmetic(config.run.threads, flush_denormals=True), torch.random.fork_rng(devices=[]):
        task = task or load_task(config)
        space = space or make_search_space(config)
        check_memory(config, task, space)
        check_importance(config, task)
        made = list(records)
        for arm in search_arms(config):
            _run_arm(config, task, space, arm, made, checkpoint, on_epoch, on_progress, checkpoints or no_checkpoints())
    return made


def run_search(
    config: SearchConfig,
    *,
    space: SearchSpace | None = None,
    task: Task[Any] | None = None,
    protections: Sequence[ProtectionOptions] | None = None,
    on_progress: OnProgress | None = None,
) -> SearchResult:
    """Make searches in memory, on one's own supernet and data if they are given.

    Args:
        config: What to do.
        space: A space with its supernet, registered or not; the configuration's if None.
        task: The data; that of the configuration if None.
        protections: Options of the arms to compare, of classes that are registered or not; the configuration's if
            None.
        on_progress: Called within epochs.

    Returns:
        The records of all arms, and what they say: `summary()`, `by_seed(…)`, `difference(…)`.

    Raises:
        InputError: As `run`; or if an option does not fit.

    >>> from forgetless.search.config import Schedule, SelectionConfig
    >>> from forgetless.spaces.nas201 import Nas201SearchSpace
    >>> short = Schedule(epochs=1, models_per_epoch=2, batches_per_model=2, strategy_steps=1, samples_per_step=2)
    >>> config = SearchConfig(schedule=short, selection=SelectionConfig(final_samples=0))
    >>> result = run_search(config, space=Nas201SearchSpace())
    >>> [record.num_models for record in result.records]
    [2]
    """
    changes: dict[str, Any] = {} if space is None else {"space": space.options}
    if protections is not None:
        changes["protections"] = tuple(protections)
    config = config.fitted_to(**changes)
    return SearchResult(config, run(config, space=space, task=task, on_progress=on_progress))


def reconcile(
    config: SearchConfig, records: Sequence[SearchRecord], checkpoint: Mapping[str, Any] | None
) -> list[SearchRecord]:
    """The records that a run goes on from: those of finished arms, and of one more as far as its checkpoint knows.

    The two are stored one after the other, so that a crash can leave a checkpoint one record ahead (the record is
    taken from it) or, where the newest checkpoint was damaged, some records behind (these will be made again).

    Args:
        config: The configuration.
        records: What was recorded.
        checkpoint: The newest state that can be read.

    Returns:
        The records to keep.

    Raises:
        InputError: If the checkpoint is of another configuration.
    """
    if checkpoint is not None:
        config.expect_own_state(checkpoint, FORMAT)
    kept: list[SearchRecord] = []
    for arm in search_arms(config):
        mine = [record for record in records if record.arm == arm]
        if checkpoint is not None and _is_of(checkpoint, arm):
            known = checkpoint["num_records"]
            newest = [search_record(checkpoint["record"], "a checkpoint")] if known else []
            mine = [*mine[: known - len(newest)], *newest] if len(mine) >= known - 1 else []
        elif len(mine) < config.num_records:
            mine = []
        kept += mine
    return kept


def _is_of(checkpoint: Mapping[str, Any], arm: SearchArm) -> bool:
    return bool(checkpoint["arm"] == dataclasses.asdict(arm))


def _expect_shared_weights(config: SearchConfig) -> None:
    if not config.trains_shared_weights:
        raise InputError(
            f"Expected a search that trains shared weights, but got one with the strategy {config.strategy_name}, "
            "which trains none. Name another."
        )


def _wanted_steps(config: SearchConfig, arm: SearchArm, made: Sequence[SearchRecord]) -> dict[int, float | None]:
    """Epoch → mean step under the protection that a control arm is matched to."""
    matched = config.options_of(arm.protection).kind.matches
    if matched is None:
        return {}
    is_net, followed = config.options_of(matched).moves_weights, SearchArm(arm.seed, matched)
    return {
        record.epoch: record.mean_net_step if is_net else record.mean_step
        for record in made
        if isinstance(record, EpochRecord) and record.is_protected and record.arm == followed
    }


def _run_arm(
    config: SearchConfig,
    task: Task[Any],
    space: SearchSpace,
    arm: SearchArm,
    made: list[SearchRecord],
    checkpoint: Mapping[str, Any] | None,
    on_epoch: OnEpoch | None,
    on_progress: OnProgress | None,
    checkpoints: Checkpoints,
) -> None:
    """Append to `made` the records of one arm that are missing there."""
    mine = [record for record in made if record.arm == arm]
    if len(mine) == config.num_records:
        return
    torch.manual_seed(arm.seed)  # what is drawn in training, such as dropout
    search = Search(config, task, arm, space)
    if checkpoint is not None and _is_of(checkpoint, arm) and len(mine) == checkpoint["num_records"]:
        search.load_state_dict(checkpoint)
    wanted = _wanted_steps(config, arm, made)
    counted, per_arm = (EpochRecord, config.num_epochs) if config.num_epochs else (DerivedRecord, 1)
    total = len(search_arms(config)) * per_arm

    known: dict[str, float] = {}

    def show(phase: str, values: Mapping[str, float]) -> None:
        known.update(values)
        for name, key in (("forgetting", "forgetting_mean"), ("reward", "strategy_mean_reward")):
            found = [record.number(key) for record in mine if isinstance(record, EpochRecord)]
            if name not in values and (present := [value for value in found if value is not None]):
                known[name] = present[-1]
        if on_progress is not None:
            done = sum(isinstance(record, counted) for record in made)
            epoch = f"epoch {min(search.epoch + 1, config.num_epochs)}, " if config.num_epochs else ""
            label = f"seed {arm.seed} {arm.protection}: {epoch}{phase}"
            told = (task.in_words(v) if n == task.error_name else f"{n} {v:.3f}" for n, v in known.items())
            on_progress(Progress(done, total, label, "  ".join(told)))

    def state() -> dict[str, Any]:
        last = mine[-1].to_dict() if mine else None
        known = {"format": FORMAT, "config": config.to_dict(), "num_records": len(mine), "record": last}
        return {**search.state_dict(), **known}

    def point() -> None:
        checkpoints.point(state)

    while len(mine) < config.num_records:
        is_epoch = search.epoch < config.num_epochs
        record = search.one_epoch(wanted, show, point) if is_epoch else search.derive(show, point)
        mine.append(record)
        made.append(record)
        if on_epoch is not None:
            on_epoch(record, state())
            checkpoints.stored()


def measure_arms(
    config: SearchConfig,
    states: Sequence[Mapping[str, Any]],
    *,
    num_models: int = 8,
    num_batches: int | None = None,
    on_progress: OnProgress | None = None,
) -> list[InterferenceRecord]:
    """Who overwrites whom, on stored states of a search: the same sample and batches for all states of a seed.

    Args:
        config: Of the search.
        states: As `on_epoch` of `run` was given them, one per arm.
        num_models: Architectures to draw, at least 2.
        num_batches: Batches that each is trained for; `batches_per_model` if None.
        on_progress: Called before and after each training.

    Returns:
        One record per state.

    Raises:
        InputError: If the data is missing or damaged, a state is of another configuration, there are fewer than 2
            models, or the strategy trains no shared weights.
    """
    _expect_shared_weights(config)

    def show(arm: SearchArm, before: int, trained: int) -> None:
        if on_progress is not None:
            label = f"seed {arm.seed} {arm.protection}: {trained}/{num_models} models trained"
            on_progress(Progress(before + trained, len(states) * num_models, label))

    measured = []
    with cpu_arithmetic(config.run.threads, flush_denormals=True), torch.random.fork_rng(devices=[]):
        task = load_task(config)
        for done, state in enumerate(states):
            config.expect_own_state(state, FORMAT)
            arm = SearchArm(**state["arm"])
            torch.manual_seed(arm.seed)  # the state has the CPU's random numbers only
            search = Search(config, task, arm)
            search.load_state_dict(state)
            on_trained = partial(show, arm, done * num_models)
            on_trained(0)
            sample = fixed_sample(search.strategy.space, num_models, arm.seed)
            found = search.interference(sample, search.epoch, num_batches, on_trained)
            trained = num_batches or config.schedule.batches_per_model
            measured.append(
                InterferenceRecord.of(found, **dataclasses.asdict(arm), epochs=search.epoch, num_batches=trained)
            )
    return measured


def shared_weight_rewards(
    config: SearchConfig,
    states: Sequence[Mapping[str, Any]],
    architectures: Sequence[Any],
    *,
    on_progress: OnProgress | None = None,
) -> list[list[float]]:
    """What the shared weights of stored states say of architectures: the rewards that a strategy would be told.

    Args:
        config: Of the search.
        states: As `on_epoch` of `run` was given them.
        architectures: Members of the space.
        on_progress: Called after each architecture.

    Returns:
        For each state one reward per architecture, larger is better; NaN where it diverged.

    Raises:
        InputError: If the data is missing or damaged, a state is of another configuration, or the strategy trains no
            shared weights.
    """
    _expect_shared_weights(config)
    found = []
    with cpu_arithmetic(config.run.threads, flush_denormals=True), torch.random.fork_rng(devices=[]):
        task = load_task(config)
        for done, state in enumerate(states):
            config.expect_own_state(state, FORMAT)
            arm = SearchArm(**state["arm"])
            search = Search(config, task, arm)
            search.load_state_dict(state)
            rewards = []
            for number, architecture in enumerate(architectures):
                rewards.append(search.rewards.of(architecture))
                if on_progress is not None:
                    label = f"seed {arm.seed} {arm.protection}: rewards on the shared weights"
                    total = len(states) * len(architectures)
                    on_progress(Progress(done * len(architectures) + number + 1, total, label))
            found.append(rewards)
    return found
