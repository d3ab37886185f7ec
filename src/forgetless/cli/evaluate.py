"""`forgetless evaluate`."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from forgetless.errors import InputError
from forgetless.evaluation.config import EvaluateConfig

if TYPE_CHECKING:
    from forgetless.evaluation.run import EvaluatedRun
    from forgetless.runs import RunFolder


def evaluate_command(
    run: list[Path],
    /,
    config: EvaluateConfig,
    *,
    output: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Is what finished searches select better than architectures drawn at random?

    Args:
        run: Run folders of searches in one space.
        config: What to do.
        output: Folder for evaluation.json; the first run folder by default.
        as_json: Print the result as JSON on standard output, and nothing else there.

    Raises:
        InputError: If there is no folder, one is no search, or the truth does not fit.
    """
    from forgetless.cli.terminal import (
        AGAIN_KEPT,
        exit_code_of,
        last_words,
        progress_bar,
        shown,
        tell,
        warnings_in_one_line,
        writable,
    )
    from forgetless.evaluation.run import run_evaluation
    from forgetless.evaluation.trainings import TrainingStore, default_store
    from forgetless.report.evaluation import evaluation_table
    from forgetless.runs import EVALUATION, SCORES, RunFolder, write_sealed

    judged, resources = config.evaluation, config.resources
    runs = [_evaluated(name, RunFolder(path)) for path, name in _names(run).items()]
    folder = resources.trainings or default_store()
    store = None if judged.truth is not None else TrainingStore(folder, resources.checkpoint_every)
    with last_words(AGAIN_KEPT), progress_bar() as show, warnings_in_one_line():
        scores = (output or run[0]) / SCORES
        found = run_evaluation(judged, runs, store, resources=resources, scores=scores, on_progress=shown(show))
    with writable(output or run[0]) as path:
        path.mkdir(parents=True, exist_ok=True)
        write_sealed(path / EVALUATION, found.to_dict())
    if as_json:
        print(json.dumps(found.to_dict(), allow_nan=False))  # noqa: T201
    else:
        tell(evaluation_table(found), f"Numbers: {path / EVALUATION}")
    return exit_code_of({f"training {each.architecture} with seed {each.seed}": each.reason for each in found.failures})


def _evaluated(name: str, folder: "RunFolder") -> "EvaluatedRun":
    from forgetless.cli.folders import search_result
    from forgetless.evaluation.run import EvaluatedRun

    result = search_result(folder)
    load_state = functools.partial(folder.load_trained, is_finished=True)
    return EvaluatedRun(name, result.config, result.records, load_state)


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """What folders are called: as each is named where that tells them apart, else by the paths as given."""
    if len(set(paths)) < len(paths):
        raise InputError(f"Expected different run folders, but got {', '.join(map(str, paths))}. Name each once.")
    names = [path.resolve().name for path in paths]
    return dict(zip(paths, names if len(set(names)) == len(names) else map(str, paths), strict=True))
