"""`forgetless evaluate`."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from forgetless.checkpoints import DEFAULT
from forgetless.cli.folders import search_result
from forgetless.cli.terminal import (
    AGAIN_KEPT,
    exit_code_of,
    last_words,
    progress_bar,
    show_search,
    tell,
    warnings_in_one_line,
    writable,
)
from forgetless.errors import InputError
from forgetless.evaluation.run import EvaluatedRun, EvaluationConfig, run_evaluation
from forgetless.evaluation.trainings import TrainingStore, default_store
from forgetless.runs import EVALUATION, RunFolder, write_sealed


def evaluate_command(
    run: list[Path],
    /,
    config: Annotated[EvaluationConfig | None, Parameter(name="*")] = None,
    *,
    trainings: Path | None = None,
    checkpoint_every: str = DEFAULT,
    output: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Is what finished searches select better than architectures drawn at random?

    Args:
        run: Run folders of searches in one space.
        config: What to do.
        trainings: Folder of trainings from scratch, which are made once; FORGETLESS_TRAININGS or runs/trainings by
            default.
        checkpoint_every: How much work of a training a kill may cost, such as 10min, 90s or 2h.
        output: Folder for evaluation.json; the first run folder by default.
        as_json: Print the result as JSON on standard output, and nothing else there.

    Raises:
        InputError: If there is no folder, one is no search, or the truth does not fit.
    """
    from forgetless.report import evaluation_table

    config = config or EvaluationConfig()
    runs = [_evaluated(name, RunFolder(path)) for path, name in _names(run).items()]
    store = None if config.truth is not None else TrainingStore(trainings or default_store(), checkpoint_every)
    with last_words(AGAIN_KEPT), progress_bar() as show, warnings_in_one_line():
        found = run_evaluation(config, runs, store, on_progress=show_search(show))
    with writable(output or run[0]) as path:
        path.mkdir(parents=True, exist_ok=True)
        write_sealed(path / EVALUATION, found)
    if as_json:
        print(json.dumps(found, allow_nan=False))  # noqa: T201
    else:
        tell(evaluation_table(found), f"Numbers: {path / EVALUATION}")
    failures = found["failures"]
    return exit_code_of(
        {f"training {architecture} with seed {seed}": reason for architecture, seed, reason in failures}
    )


def _evaluated(name: str, folder: RunFolder) -> EvaluatedRun:
    result = search_result(folder)
    load_state = functools.partial(folder.load_trained, is_finished=True)
    return EvaluatedRun(name, result.config, result.records, load_state)


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """What folders are called: as each is named where that tells them apart, else by the paths as given."""
    if len(set(paths)) < len(paths):
        raise InputError(f"Expected different run folders, but got {', '.join(map(str, paths))}. Name each once.")
    names = [path.resolve().name for path in paths]
    return dict(zip(paths, names if len(set(names)) == len(names) else map(str, paths), strict=True))
