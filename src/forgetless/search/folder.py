"""A search in a run folder: everything is stored as it comes, and an interrupted one goes on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from forgetless import ranks
from forgetless.checkpoints import Checkpoints, seconds_of
from forgetless.progress import OnProgress
from forgetless.runs import RunFolder
from forgetless.search.arms import reconcile, run
from forgetless.search.config import SearchConfig
from forgetless.search.records import EpochRecord, SearchRecord, read_records
from forgetless.search.setup import check_ranks, load_task


def run_in_folder(
    config: SearchConfig,
    folder: RunFolder,
    *,
    on_record: Callable[[SearchRecord], None] | None = None,
    on_progress: OnProgress | None = None,
) -> list[SearchRecord]:
    """Make what a run folder lacks of its searches.

    Args:
        config: Of the folder.
        folder: Where records, checkpoints and the final states are, and go.
        on_record: Called with each record, those that were there first.
        on_progress: Called within epochs.

    Returns:
        All records, as `run` gives them.

    Raises:
        InputError: As `run`; or if a record is damaged.
    """

    def on_epoch(record: SearchRecord, state: dict[str, Any]) -> None:
        if isinstance(record, EpochRecord) and record.epoch == config.num_epochs - 1:
            # First, because once there is a checkpoint this epoch is not done again.
            folder.save_trained(record.seed, record.protection, state)
        folder.save_checkpoint(state)
        folder.append(record.to_dict())
        if on_record is not None:
            on_record(record)

    checkpoint, found = folder.load_checkpoint(), read_records(config, folder)
    kept = reconcile(config, found, checkpoint)
    if kept != found:
        folder.replace_records([record.to_dict() for record in kept])
    if on_record is not None:
        for record in kept:
            on_record(record)
    checkpoints = Checkpoints(folder.save_checkpoint, seconds_of(config.resources.checkpoint_every))
    task = load_task(config)
    check_ranks(config, task)
    with ranks.together(run_beside, config, kept, checkpoint):
        return run(
            config,
            records=kept,
            checkpoint=checkpoint,
            on_epoch=on_epoch,
            on_progress=on_progress,
            checkpoints=checkpoints,
            task=task,
        )


def run_beside(config: SearchConfig, records: Sequence[SearchRecord], checkpoint: Mapping[str, Any] | None) -> None:
    """What another process does while the first one makes what its run folder lacks.

    Args:
        config: Of the folder.
        records: That the run goes on from.
        checkpoint: The newest state.
    """
    run(config, records=records, checkpoint=checkpoint)
