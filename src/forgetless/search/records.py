"""The records of a search: what a line of its `metrics.jsonl` holds, and which lines a configuration makes."""

from collections.abc import Sequence
from typing import Any, Literal, NotRequired, TypedDict

from forgetless.errors import InputError
from forgetless.runs import METRICS, RunFolder
from forgetless.schema import Number, expect_place, expect_type
from forgetless.search.config import SearchArm, SearchConfig, search_arms

Record = dict[str, Any]


class EpochRecord(TypedDict):
    """One epoch; docs/metrics.md explains the keys. Those that begin with `strategy_` depend on the strategy."""

    event: Literal["epoch"]
    seed: int
    protection: str
    epoch: int
    forgetting_mean: Number
    forgetting_best: Number
    forgetting_max: Number
    num_models: int
    num_diverged: int
    multi_model_part: NotRequired[Number]
    error_first: Number
    error_consolidated: NotRequired[Number]
    error_second: Number
    is_protected: NotRequired[bool]
    penalty: Number
    mean_step: Number
    mean_net_step: NotRequired[Number]
    num_passed_over: NotRequired[int]
    learning_rate: float
    seconds: dict[str, float]


class DerivedRecord(TypedDict):
    """What an arm selected; docs/metrics.md explains the keys."""

    event: Literal["derived"]
    seed: int
    protection: str
    architecture: str
    reward: Number
    candidates: NotRequired[list[tuple[str, Number]]]
    random_architecture: str
    derived_validation_error: Number
    derived_test_error: Number
    random_validation_error: Number
    random_test_error: Number
    seconds: dict[str, float]


_KINDS = {"epoch": EpochRecord, "derived": DerivedRecord}
_OF_STRATEGY = "strategy_"


def read_records(config: SearchConfig, folder: RunFolder) -> list[Record]:
    """The records of a search's folder.

    Args:
        config: Of the folder.
        folder: The folder.

    Returns:
        As far as the search got.

    Raises:
        InputError: If a line is damaged, no record, or not one that the configuration makes at this place.
    """
    records = folder.records()
    check_records(config, records, str(folder.path / METRICS))
    return records


def check_records(config: SearchConfig, records: Sequence[Record], path: str) -> None:
    """Refuse records that the configuration does not make in this order.

    Args:
        config: The configuration.
        records: Of a file, in its order.
        path: The file, for messages.

    Raises:
        InputError: If one is no record of a search, of an arm that was not asked for, doubled, or out of order.
    """
    arms = search_arms(config)
    allowed: dict[Any, int] = {(arm, "epoch"): config.num_epochs for arm in arms}
    allowed |= {(arm, "derived"): int(config.selection.final_samples > 0) for arm in arms}
    seen: dict[Any, int] = {}
    for line, record in enumerate(records, start=1):
        where = f"line {line} of {path}"
        event = record.get("event")
        if not isinstance(event, str) or event not in _KINDS:
            raise InputError(f"Expected a record of search in {where}, but its event is {event!r}.")
        of_strategy = [name for name in record if name.startswith(_OF_STRATEGY)] if event == "epoch" else []
        known = dict(record)
        learned = {name: known.pop(name) for name in of_strategy}
        expect_type(known, _KINDS[event], "a record of search", where)
        expect_type(learned, dict[str, Number], "numbers of the strategy", where)
        arm = SearchArm(record["seed"], record["protection"])
        what = f"the {event} of seed {arm.seed} under {arm.protection}"
        expect_place((arm, event), allowed, seen, what, where)
        epochs = seen.get((arm, "epoch"), 0)
        if event == "epoch" and record["epoch"] != epochs - 1:
            raise InputError(f"Expected epoch {epochs - 1} of {what[13:]} in {where}, but got epoch {record['epoch']}.")
        if event == "derived" and epochs < config.num_epochs:
            raise InputError(f"Expected all {config.num_epochs} epochs before {what} in {where}, but got {epochs}.")
