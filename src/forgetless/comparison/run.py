"""Doing a comparison: one search folder per strategy and seed, here or on a cluster, and what they selected judged.

| in the folder | content |
|---|---|
| `config.toml`, `environment.json`, `report.html` | as in every run folder |
| `enas/seed-3/` | an ordinary run folder of a search: all protections of one strategy and seed, and its evaluation |
| `evaluation.json` | that of all searches, if they are judged by training from scratch |
| `baselines/` | scores of rules without a search, a file per seed |
| `metrics.jsonl` | searches that failed, with the reason |

Nothing else is kept, so that an interrupted comparison goes on as its searches do.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from forgetless.comparison.config import ComparisonConfig
from forgetless.configuration import differing_options
from forgetless.errors import InputError
from forgetless.evaluation.config import EvaluationConfig
from forgetless.evaluation.records import Evaluation, load_evaluation
from forgetless.evaluation.run import EvaluatedRun, run_evaluation
from forgetless.evaluation.searches import random_architectures
from forgetless.evaluation.trainings import TrainingStore, default_store
from forgetless.evaluation.truth import read_truth
from forgetless.experiments.carried import make_on_cluster
from forgetless.experiments.pieces import Piece, followed, run_piece
from forgetless.experiments.search import SearchRun
from forgetless.progress import OnProgress
from forgetless.records import Record
from forgetless.runs import (
    CONFIG,
    EVALUATION,
    SCORES,
    RunFolder,
    write_sealed,
    writing_to,
)
from forgetless.search import (
    SearchConfig,
    check_memory,
    load_task,
    make_space,
    read_records,
    search_arms,
)
from forgetless.search.records import DerivedRecord, SearchRecord
from forgetless.workers import fan_out


@dataclass(frozen=True)
class Unit:
    """What one process does at a time: the searches of one strategy and seed.

    Attributes:
        path: Of its run folder.
        config: Of its searches.
        evaluation: How they are judged; None if that is done for all units together.
    """

    path: Path
    config: SearchConfig
    evaluation: EvaluationConfig | None

    @property
    def key(self) -> str:
        """Its name: the folder below that of the comparison."""
        return f"{self.path.parent.name}/{self.path.name}"


def units(folder: RunFolder, config: ComparisonConfig) -> list[Unit]:
    """Everything that a comparison does, seed by seed.

    Args:
        folder: Of the comparison.
        config: Of the comparison.
    """
    own = None if config.evaluation.truth is None else config.evaluation
    return [
        Unit(
            folder.path / strategy / f"seed-{seed}",
            config.search_of(strategy).changed({"run.seeds": 1, "run.first_seed": seed}),
            own,
        )
        for seed in config.search.run.all_seeds
        for strategy in config.strategy_names
    ]


def check(config: ComparisonConfig) -> None:
    """Refuse what could not be finished, before anything is written.

    Args:
        config: What is asked for.

    Raises:
        InputError: If there are too few seeds, the data or the truth is missing or of another space, or the memory is
            too small.
    """
    if not config.tests.allow_few_seeds:
        config.expect_seeds()
    searches = [config.search_of(strategy) for strategy in config.strategy_names]
    task = load_task(searches[0])
    for search in searches:
        check_memory(search, task)
    judged = config.evaluation
    if judged.truth is not None:
        truth = read_truth(judged.truth, make_space(searches[0]), judged.column)
        number = min(judged.top, config.search.selection.final_samples)
        for seed in config.search.run.all_seeds:
            # What searches will find is not known yet, but what it is compared with is.
            truth.positions(random_architectures(searches[0], seed, number))


def run_comparison(
    folder: RunFolder,
    config: ComparisonConfig,
    *,
    on_progress: OnProgress | None = None,
) -> dict[str, str]:
    """Do all that is left of a comparison.

    Args:
        folder: Where it is kept.
        config: Of the folder.
        on_progress: Called about once a second, from another thread.

    Returns:
        Name → reason of each search, or training from scratch, that failed twice. The others are done.

    Raises:
        InputError: If trainings from scratch cannot be begun, as where a cluster does not answer.
    """
    wanted = units(folder, config)
    sizes = {unit.path: SearchRun.num_records(unit.config) for unit in wanted}
    names = {unit.path: unit.key for unit in wanted}
    with followed(names, sizes, 0, on_progress, at_last="judging what was found"):
        reasons = _make(
            [unit for unit in wanted if not is_finished(unit)],
            lambda unit, result: folder.drop_previous(),  # noqa: ARG005
            config,
        )
    for name, reason in reasons.items():
        folder.append(FailureRecord(unit=name, reason=reason).to_dict())
    finished = [unit for unit in wanted if is_finished(unit)]
    if config.evaluation.truth is None and finished:
        resources = config.resources
        store = TrainingStore(resources.trainings or default_store(), resources.checkpoint_every)
        runs = [_evaluated(unit) for unit in finished]
        found = run_evaluation(config.evaluation, runs, store, resources=resources, on_progress=on_progress)
        _store_evaluation(folder.path, found)
        reasons |= {f"{each.architecture}, training seed {each.seed}": each.reason for each in found.failures}
    return reasons


def _make(wanted: Sequence[Unit], done: Callable[[Unit, None], None], config: ComparisonConfig) -> dict[str, str]:
    """Make units, over processes or a cluster; name → reason of each that failed twice."""
    resources = config.resources
    if resources.cluster is not None:
        device = config.search.run.device
        return make_on_cluster(wanted, _run_unit, done, resources.cluster, resources.workers, device)
    failures = fan_out(wanted, _run_unit, done, workers=resources.workers)
    return {failure.job.key: failure.reason for failure in failures}


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRecord(Record):
    """A search of a comparison that failed twice.

    Attributes:
        unit: (text) Its strategy and seed.
        reason: (text) The last error.
    """

    event: ClassVar[str] = "failed"

    unit: str
    reason: str


def read_failures(folder: RunFolder, config: ComparisonConfig) -> dict[str, str]:
    """Why searches failed, by name; the last reason of each. They may have been made since.

    Args:
        folder: Of the comparison.
        config: Of the folder.

    Raises:
        InputError: If a line is damaged, or of no search of this comparison.
    """
    names = {unit.key for unit in units(folder, config)}
    reasons = {}
    for record, where in folder.read_records(functools.partial(FailureRecord.from_dict, what="a record of compare")):
        if record.unit not in names:
            raise InputError(f"Expected a search of this comparison in {where}, but got {record.unit!r}.")
        reasons[record.unit] = record.reason
    return reasons


def read_unit(unit: Unit) -> list[SearchRecord]:
    """The records of a unit, as far as it got.

    Args:
        unit: Which; its folder must be there.

    Raises:
        InputError: If its folder is damaged, or has other options than the comparison asks for.
    """
    folder = RunFolder(unit.path)
    stored = SearchConfig.from_dict(folder.header.options)  # options that came later have their defaults
    if told := differing_options(stored.to_dict(), unit.config.to_dict()):
        raise InputError(f"Expected the search that the comparison asks for in {unit.path}, but got {told}.")
    return read_records(unit.config, folder)


def is_finished(unit: Unit) -> bool:
    """Whether all searches of a unit have selected something, and were judged if that is done here.

    Args:
        unit: Which.
    """
    if not (unit.path / CONFIG).is_file():
        return False
    derived = sum(isinstance(record, DerivedRecord) for record in read_unit(unit))
    if derived < len(search_arms(unit.config)):
        return False
    return unit.evaluation is None or read_evaluation(unit) is not None


def read_evaluation(unit: Unit) -> Evaluation | None:
    """How a unit was judged; None if it was not, or otherwise than is asked for.

    Args:
        unit: Which.
    """
    assert unit.evaluation is not None
    header = RunFolder(unit.path).header
    try:
        found = load_evaluation(unit.path / EVALUATION, header.digest)
    except FileNotFoundError:
        return None
    except InputError as error:
        warnings.warn(f"{error} Going on judges {unit.key} again.", stacklevel=2)
        return None
    is_whole = len(found.searches) == len(search_arms(unit.config))
    return found if is_whole and found.about.was_asked_for(unit.evaluation) else None


# ---- in another process ------------------------------------------------------------------------------------------


def _run_unit(unit: Unit) -> None:
    """Make what a unit lacks. What is wrong with one, such as a damaged file, is not to stop the others."""
    run_piece(Piece(unit.path, SearchRun.name, unit.config))
    try:
        if unit.evaluation is not None and read_evaluation(unit) is None:
            scores = unit.path.parents[1] / SCORES  # in the folder of the comparison: strategies of a seed share them
            _store_evaluation(unit.path, run_evaluation(unit.evaluation, [_evaluated(unit)], scores=scores))
    except InputError as error:
        raise RuntimeError(str(error)) from error


def _evaluated(unit: Unit) -> EvaluatedRun:
    load_state = functools.partial(RunFolder(unit.path).load_trained, is_finished=True)
    return EvaluatedRun(unit.key, unit.config, read_unit(unit), load_state)


def _store_evaluation(path: Path, found: Evaluation) -> None:
    with writing_to(path):
        write_sealed(path / EVALUATION, found.to_dict(), RunFolder(path).header.digest)
