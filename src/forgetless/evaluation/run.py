"""A whole evaluation: what some runs selected is looked up or trained from scratch, and judged against random."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from forgetless.errors import InputError
from forgetless.evaluation.baselines import beats_of, judge_baselines, rows_of
from forgetless.evaluation.benchmark import task_difference
from forgetless.evaluation.config import EvaluationConfig
from forgetless.evaluation.records import (
    Evaluation,
    FailedTraining,
    JudgedBaseline,
    JudgedBy,
    JudgedSearch,
    UndefinedRule,
)
from forgetless.evaluation.scores import baseline_scores, defined_baselines
from forgetless.evaluation.searches import (
    Estimates,
    FinishedSearch,
    evaluate,
    finished_searches,
    random_architectures,
    summarise,
)
from forgetless.evaluation.trainings import Training, TrainingStore, run_trainings
from forgetless.evaluation.truth import Truth, read_truth
from forgetless.parts import TrainingResources
from forgetless.progress import OnProgress, Progress
from forgetless.search import SearchConfig, load_task, make_space, shared_weight_rewards
from forgetless.search.records import SearchRecord
from forgetless.search.setup import check_shares, make_search_space
from forgetless.tasks import TASKS
from forgetless.workers import Failure

_ESTIMATED_SEED = 0  # of the architectures whose rank is asked for; the same for every search of a space


@dataclass(frozen=True)
class EvaluatedRun:
    """A run to evaluate.

    Attributes:
        name: For people.
        config: Of its search.
        records: Of that run.
        load_state: Gives the state that an arm (seed, protection) ended in, or None.
    """

    name: str
    config: SearchConfig
    records: Sequence[SearchRecord]
    load_state: Callable[[int, str], Mapping[str, Any] | None]


def run_evaluation(
    config: EvaluationConfig,
    runs: Sequence[EvaluatedRun],
    store: TrainingStore | None = None,
    *,
    resources: TrainingResources | None = None,
    scores: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Judge what searches selected.

    Args:
        config: What to do.
        runs: Of one space, at least one.
        store: Where trainings are kept; not needed with a truth.
        resources: How trainings are made.
        scores: Folder where scores of baselines are kept; nowhere if None.
        on_progress: Called as rewards and trainings are done.

    Returns:
        A record of each search, and their summary.

    Raises:
        InputError: If no search is finished, the spaces differ, or the truth does not fit or lacks what it is to judge.
    """
    if not runs:
        raise InputError("Expected at least one run to evaluate, but got none.")
    spaces = {str(make_space(run.config)) for run in runs}
    if len(spaces) > 1:
        raise InputError(f"Expected runs of one space, but got {', '.join(sorted(spaces))}. Evaluate them separately.")
    searches = [(run, search) for run in runs for search in finished_searches(run.name, run.config, run.records)]
    truth = None if config.truth is None else read_truth(config.truth, make_space(runs[0].config), config.column)
    about = _about(config, [run.config for run in runs], truth)
    failures: list[Failure[Training]] = []
    if truth is not None:
        for _, search in searches:
            found = search.ranking[: config.top]
            truth.positions([*found, *random_architectures(search.config, search.arm.seed, len(found))])  # or refuses
        trained = [dict(zip(truth.architectures, truth.values.tolist(), strict=True))] * len(searches)
    else:
        assert store is not None
        trained, failures = _train_all(config, searches, store, resources or TrainingResources(), on_progress)
    records: list[JudgedSearch] = []
    lower = about.lower_is_better
    for (run, search), known in zip(searches, trained, strict=True):
        estimates = None if truth is None else _estimates(config, run, search, truth, on_progress)
        records.append(evaluate(search, known, top=config.top, lower_is_better=lower, truth=truth, estimates=estimates))
    judged, undefined = _baselines(config, runs, records, truth, scores, on_progress)
    return Evaluation(
        about=about,
        searches=records,
        summary=summarise(records, lower_is_better=lower),
        failures=[FailedTraining(each.job.architecture, each.job.seed, each.reason) for each in failures],
        baselines=tuple(judged),
        beats=beats_of(rows_of(records), judged, lower_is_better=lower),
        undefined=tuple(UndefinedRule(rule, reason) for rule, reason in undefined.items()),
    )


def _about(config: EvaluationConfig, searches: Sequence[SearchConfig], truth: Truth[Any] | None) -> JudgedBy:
    if truth is not None:
        differences = dict.fromkeys(task_difference(str(config.truth), search) for search in searches)
        measure, is_lower = truth.column, truth.lower_is_better
        description = " ".join([truth.description, *filter(None, differences)])
    else:
        unit = TASKS[searches[0].space.kind.task].unit
        measure, is_lower = f"test {unit.error}" + (f", {unit.name}" if unit.scale == 1 else ""), True
        seeds = f"{config.training_seeds} seed{'s' * (config.training_seeds > 1)}"
        description = f"Trained from scratch, mean over {seeds}; smaller is better."
    return JudgedBy(
        options=dataclasses.asdict(config),
        measure=measure,
        description=description,
        lower_is_better=is_lower,
        ceiling=None if truth is None else truth.ceiling,
    )


def _train_all(
    config: EvaluationConfig,
    searches: Sequence[tuple[EvaluatedRun, FinishedSearch]],
    store: TrainingStore,
    resources: TrainingResources,
    on_progress: OnProgress | None,
) -> tuple[list[dict[Any, float]], list[Failure[Training]]]:
    """For each search the mean test error of every architecture that it is judged by."""
    digests = {}
    for run in {run.name: run for run, _ in searches}.values():
        task = load_task(run.config)
        check_shares(run.config.run.device, task)
        digests[run.name] = task.digest()
    wanted: list[tuple[int, Any, Training]] = []
    for number, (run, search) in enumerate(searches):
        found = search.ranking[: config.top]
        for architecture in dict.fromkeys([*found, *random_architectures(run.config, search.arm.seed, len(found))]):
            for seed in range(config.training_seeds):
                training = Training.of(
                    run.config,
                    digests[run.name],
                    architecture,
                    seed=seed,
                    num_batches=config.batches or run.config.final_batches,
                )
                wanted.append((number, architecture, training))

    def on_result(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(Progress(done, total, "training from scratch"))

    results, failures = run_trainings(
        [training for _, _, training in wanted],
        store,
        workers=resources.workers,
        cluster=resources.cluster,
        on_result=on_result,
    )
    gathered: list[dict[Any, list[float]]] = [{} for _ in searches]
    for (number, architecture, _), result in zip(wanted, results, strict=True):
        errors = gathered[number].setdefault(architecture, [])
        if result is not None and math.isfinite(result.test_error):
            errors.append(result.test_error)
    means = [{a: statistics.fmean(e) if e else math.nan for a, e in each.items()} for each in gathered]
    return means, failures


def _baselines(
    config: EvaluationConfig,
    runs: Sequence[EvaluatedRun],
    records: Sequence[JudgedSearch],
    truth: Truth[Any] | None,
    folder: Path | None,
    on_progress: OnProgress | None,
) -> tuple[list[JudgedBaseline], dict[str, str]]:
    """What rules without a search select, for every run and seed; and why others have no score."""
    if truth is None or not config.baselines:
        return [], {}
    names, undefined = defined_baselines(make_search_space(runs[0].config))
    top = min(len(record.found) for record in records)
    found: list[JudgedBaseline] = []

    def on_score(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(Progress(done, total, "scores without a search"))

    for run in runs:
        try:
            task = load_task(run.config)
        except InputError as error:  # a table can judge a search whose data is not at hand
            return [], undefined | dict.fromkeys(names, f"It needs the data of the search. {error}")
        for seed in dict.fromkeys(record.seed for record in records if record.run == run.name):
            # Drawn anew for each seed, so that the luck of one draw is not that of all.
            chosen = _drawn(truth, config.baselines, seed)
            scores = baseline_scores(run.config, seed, chosen, folder, task=task, on_score=on_score)
            found += judge_baselines(run.name, seed, chosen, scores, truth, top)
    return found, undefined


def _drawn(truth: Truth[Any], number: int, seed: int) -> tuple[Any, ...]:
    """So many architectures of a truth, the same for every search of that seed; all if it has no more."""
    if len(truth.architectures) <= number:
        return truth.architectures
    order = torch.randperm(len(truth.architectures), generator=torch.Generator().manual_seed(seed))
    return tuple(truth.architectures[i] for i in order[:number].tolist())


def _estimates(
    config: EvaluationConfig,
    run: EvaluatedRun,
    search: FinishedSearch,
    truth: Truth[Any],
    on_progress: OnProgress | None,
) -> Estimates | None:
    """Rewards on the shared weights of a search; None where its state is not kept, or none are asked for."""
    is_asked = config.estimates and run.config.trains_shared_weights
    state = run.load_state(search.arm.seed, search.arm.protection) if is_asked else None
    if state is None:
        return None
    chosen = _drawn(truth, config.estimates, _ESTIMATED_SEED)
    (rewards,) = shared_weight_rewards(run.config, [state], chosen, on_progress=on_progress)
    return Estimates(chosen, tuple(rewards))
