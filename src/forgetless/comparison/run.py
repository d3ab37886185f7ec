"""Doing a comparison: one search folder per strategy and seed, over processes, and what they hand over judged.

| in the folder | content |
|---|---|
| `config.toml`, `environment.json`, `report.html` | as in every run folder |
| `enas/seed-3/` | an ordinary run folder of a search: all protections of one strategy and seed, and its evaluation |
| `evaluation.json` | that of all searches, if they are judged by training from scratch |
| `metrics.jsonl` | searches that failed, with the reason |

Nothing else is kept, so that an interrupted comparison goes on as its searches do.
"""

import contextlib
import dataclasses
import functools
import json
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from forgetless.comparison.config import ComparisonConfig
from forgetless.errors import InputError
from forgetless.evaluation.run import EvaluatedRun, EvaluationConfig, run_evaluation
from forgetless.evaluation.searches import random_architectures
from forgetless.evaluation.trainings import TrainingStore, default_store
from forgetless.evaluation.truth import read_truth
from forgetless.evaluation.workers import fan_out
from forgetless.runs import (
    CONFIG,
    EVALUATION,
    EXPERIMENT,
    METRICS,
    SEARCH,
    RunFolder,
    differing_options,
    read_sealed,
    write_sealed,
    writing_to,
)
from forgetless.schema import expect_type
from forgetless.search import (
    SearchConfig,
    SearchProgress,
    check_memory,
    load_task,
    make_space,
    read_records,
    run_in_folder,
    search_arms,
)

_SECONDS_BETWEEN_LOOKS = 1.0


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
    # Who makes trainings from scratch does not matter here, where there are none.
    own = None if config.truth is None else dataclasses.replace(config.evaluation, workers=None, cluster=None)
    return [
        Unit(
            folder.path / strategy / f"seed-{seed}",
            dataclasses.replace(config.search(strategy), seeds=1, first_seed=seed),
            own,
        )
        for seed in config.all_seeds
        for strategy in config.strategy
    ]


def check(config: ComparisonConfig) -> None:
    """Refuse what could not be finished, before anything is written.

    Args:
        config: What is asked for.

    Raises:
        InputError: If there are too few seeds, the data or the truth is missing or of another space, or the memory is
            too small.
    """
    if not config.allow_few_seeds:
        config.expect_seeds()
    searches = [config.search(strategy) for strategy in config.strategy]
    task = load_task(searches[0])
    for search in searches:
        check_memory(search, task)
    if config.truth is not None:
        truth = read_truth(config.truth, make_space(searches[0]), config.column)
        for seed in config.all_seeds:
            # What searches will find is not known yet, but what it is compared with is.
            truth.positions(random_architectures(searches[0], seed, min(config.top, config.final_samples)))


def run_comparison(
    folder: RunFolder,
    config: ComparisonConfig,
    *,
    on_progress: Callable[[SearchProgress], None] | None = None,
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
    with _followed(wanted, on_progress):
        failures = fan_out(
            [unit for unit in wanted if not is_finished(unit)],
            _run_unit,
            lambda unit, result: folder.drop_previous(),  # noqa: ARG005
            workers=config.workers,
        )
    reasons = {failure.job.key: failure.reason for failure in failures}
    for name, reason in reasons.items():
        folder.append({"event": "failed", "unit": name, "reason": reason})
    finished = [unit for unit in wanted if is_finished(unit)]
    if config.truth is None and finished:
        store = TrainingStore(config.trainings or default_store(), config.checkpoint_every)
        found = run_evaluation(
            config.evaluation, [_evaluated(unit) for unit in finished], store, on_progress=on_progress
        )
        _store_evaluation(folder.path, found)
        reasons |= {f"{architecture}, training seed {seed}": why for architecture, seed, why in found["failures"]}
    return reasons


class FailureRecord(TypedDict):
    """A search, or all of one strategy and seed, that failed twice."""

    event: Literal["failed"]
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
    for line, record in enumerate(folder.records(), start=1):
        where = f"line {line} of {folder.path / METRICS}"
        expect_type(record, FailureRecord, "a record of compare", where)
        if record["unit"] not in names:
            raise InputError(f"Expected a search of this comparison in {where}, but got {record['unit']!r}.")
        reasons[record["unit"]] = record["reason"]
    return reasons


def read_unit(unit: Unit) -> list[dict[str, Any]]:
    """The records of a unit, as far as it got.

    Args:
        unit: Which; its folder must be there.

    Raises:
        InputError: If its folder is damaged, or has other options than the comparison asks for.
    """
    folder = RunFolder(unit.path)
    asked = unit.config.to_toml()
    options = folder.header.options
    if told := differing_options(options, {name: asked[name] for name in options if name in asked}):
        raise InputError(f"Expected the search that the comparison asks for in {unit.path}, but got {told}.")
    return read_records(unit.config, folder)


def is_finished(unit: Unit) -> bool:
    """Whether all searches of a unit have handed something over, and were judged if that is done here.

    Args:
        unit: Which.
    """
    if not (unit.path / CONFIG).is_file():
        return False
    derived = sum(record["event"] == "derived" for record in read_unit(unit))
    if derived < len(search_arms(unit.config)):
        return False
    return unit.evaluation is None or read_evaluation(unit) is not None


def read_evaluation(unit: Unit) -> dict[str, Any] | None:
    """How a unit was judged; None if it was not, or otherwise than is asked for.

    Args:
        unit: Which.
    """
    assert unit.evaluation is not None
    header = RunFolder(unit.path).header
    try:
        found = read_sealed(unit.path / EVALUATION, header.digest)
    except FileNotFoundError:
        return None
    except InputError as error:
        warnings.warn(f"{error} Going on judges {unit.key} again.", stacklevel=2)
        return None
    try:
        is_whole = len(found["searches"]) == len(search_arms(unit.config))
        asked = dataclasses.asdict(unit.evaluation)
        is_ours = {name: found["about"][name] for name in asked} == asked
    except (KeyError, TypeError):
        return None
    return found if is_whole and is_ours else None


# ---- in another process ------------------------------------------------------------------------------------------


def _run_unit(unit: Unit) -> dict[str, Any]:
    """Make what a unit lacks. What is wrong with one, such as a damaged file, is not to stop the others."""
    try:
        folder = _folder_of(unit)
        with folder.writing(unit.config.device):
            run_in_folder(unit.config, folder)
        if unit.evaluation is not None and read_evaluation(unit) is None:
            _store_evaluation(unit.path, run_evaluation(unit.evaluation, [_evaluated(unit)]))
    except InputError as error:
        raise RuntimeError(str(error)) from error
    return {}


def _folder_of(unit: Unit) -> RunFolder:
    if (unit.path / CONFIG).is_file():
        return RunFolder(unit.path)
    return RunFolder.create(unit.path, {EXPERIMENT: SEARCH, **unit.config.to_toml()}, device=unit.config.device)


def _evaluated(unit: Unit) -> EvaluatedRun:
    load_state = functools.partial(RunFolder(unit.path).load_trained, is_finished=True)
    return EvaluatedRun(unit.key, unit.config, read_unit(unit), load_state)


def _store_evaluation(path: Path, found: Mapping[str, Any]) -> None:
    with writing_to(path):
        write_sealed(path / EVALUATION, found, RunFolder(path).header.digest)


# ---- looking on --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _followed(wanted: Sequence[Unit], on_progress: Callable[[SearchProgress], None] | None) -> Iterator[None]:
    """While it lasts, another thread reads how far all units are, whoever works on them."""
    if on_progress is None:
        yield
        return
    ended = threading.Event()

    def look() -> None:
        while True:
            on_progress(_progress(wanted))
            if ended.wait(_SECONDS_BETWEEN_LOOKS):
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _progress(wanted: Sequence[Unit]) -> SearchProgress:
    """Finished epochs over all units, and the last of those that are under way, the most recent first."""
    done = total = 0
    under_way: list[tuple[float, str]] = []
    for unit in wanted:
        arms = len(search_arms(unit.config))
        total += arms * unit.config.num_epochs
        path = unit.path / METRICS
        try:
            lines, written = path.read_bytes().splitlines(keepends=True), path.stat().st_mtime
        except OSError:
            continue
        records = [line for line in lines if line.endswith(b"\n")]  # what is being written is not whole
        derived = sum(b'"event": "derived"' in line for line in records)
        done += arms * unit.config.num_epochs if derived == arms else len(records) - derived
        if derived < arms:
            under_way.append((written, f"{unit.key} {_last(records)}".rstrip()))
    first, *others = [text for _, text in sorted(under_way, reverse=True)] or ["judging what was found"]
    return SearchProgress(done, total, "\n".join([first, "; ".join(others)]), {})


def _last(records: Sequence[bytes]) -> str:
    """What the last record is of."""
    with contextlib.suppress(IndexError, ValueError, KeyError):
        record = json.loads(records[-1])
        return f"{record['protection']}, epoch {record['epoch'] + 1}"
    return ""
