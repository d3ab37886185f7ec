"""The records of a two-model run: what a line of its `metrics.jsonl` holds, and which lines a configuration makes."""

import dataclasses
from typing import Any, NotRequired, TypedDict

from forgetless.experiments.two_model.config import Arm, TwoModelConfig, arms
from forgetless.runs import METRICS, RunFolder
from forgetless.schema import Number, expect_place, expect_type


class ModelRecord(TypedDict):
    """One model of the chain."""

    model: str
    accuracy_before: Number
    accuracy_after: Number
    forgetting: Number


class CurveRecord(TypedDict):
    """Test accuracies while B and the later models train."""

    iteration: list[int]
    accuracy_a: list[Number]
    accuracy_b: list[Number]


class RunRecord(TypedDict):
    """One arm; docs/metrics.md explains the keys."""

    seed: int
    shared: int
    convergence: float
    protection: str
    strength: Number
    wiring: str
    accuracy_a_before: Number
    accuracy_a_after: Number
    accuracy_a_min: Number
    accuracy_b: Number
    forgetting: Number
    validation_forgetting: Number
    validation_b: Number
    loss_a_before: NotRequired[Number]
    loss_a_after: NotRequired[Number]
    validation_loss_a_before: NotRequired[Number]
    validation_loss_a_after: NotRequired[Number]
    steps_of_a: NotRequired[int]
    mean_step: Number
    shared_learning_rate: NotRequired[Number]
    models: list[ModelRecord]
    curve: CurveRecord
    seconds: float


def read_records(config: TwoModelConfig, folder: RunFolder) -> list[dict[str, Any]]:
    """The records of a two-model run's folder.

    Args:
        config: Of the folder.
        folder: The folder.

    Returns:
        As far as the run got.

    Raises:
        InputError: If a line is damaged, no record, of an arm that was not asked for, or doubled.
    """
    records = folder.records()
    allowed, seen = dict.fromkeys(arms(config), 1), dict[Any, int]()
    for line, record in enumerate(records, start=1):
        where = f"line {line} of {folder.path / METRICS}"
        expect_type(record, RunRecord, "a record of two-model", where)
        arm = Arm(**{field.name: record[field.name] for field in dataclasses.fields(Arm)})
        what = f"{arm.label}, seed {arm.seed}, {arm.shared} shared layers, convergence {arm.convergence}"
        expect_place(arm, allowed, seen, what, where)
    return records
