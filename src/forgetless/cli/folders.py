"""Run folders from arguments: made, gone on in, and read."""

import contextlib
import datetime as dt
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from forgetless.cli.terminal import exit_code_of, last_words, progress_bar, tell, warnings_in_one_line, writable
from forgetless.errors import InputError
from forgetless.runs import COMPARE, EXPERIMENT, REPORT, SEARCH, TENSORBOARD, TWO_MODEL, RunFolder
from forgetless.tensorboard import EpochScalars

if TYPE_CHECKING:
    from forgetless.experiments.two_model import TwoModelConfig
    from forgetless.report import Result, SearchResult
    from forgetless.search import SearchConfig


def start(
    experiment: str,
    config: "TwoModelConfig | SearchConfig",
    output: Path | None,
    *,
    overwrite: bool,
    as_json: bool,
    tensorboard: bool = False,
) -> int:
    """Make a run folder, then do all of the run.

    Args:
        experiment: Which.
        config: What to do.
        output: The folder; a new one below runs/ if None.
        overwrite: Replace it if it is a run.
        as_json: Print the result as JSON.
        tensorboard: Write scalars, too.

    Returns:
        The exit code.
    """
    stamp = dt.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    path = output or Path("runs") / f"{experiment}-{_short_name(config.data)}-{stamp}"
    values = {EXPERIMENT: experiment, **config.to_toml()}
    with warnings_in_one_line():
        folder = RunFolder.create(path, values, device=config.device, overwrite=overwrite)
    return go_on(folder, as_json=as_json, tensorboard=tensorboard)


def _short_name(data: str) -> str:
    """What data is called in the name of a folder: without what cannot be printed, and not too long for one."""
    name = "".join(character if character.isprintable() else "_" for character in Path(data).stem)
    return name.encode()[:100].decode(errors="ignore")  # names have 255 bytes at most, and others are made of it


def go_on(folder: RunFolder, *, as_json: bool, tensorboard: bool = False) -> int:
    """Do what is left of a run, then show it.

    Args:
        folder: The run.
        as_json: Print the result as JSON.
        tensorboard: Write scalars, too; for a search.

    Returns:
        The exit code.

    Raises:
        InputError: If it has no scalars, is damaged, or is being written.
    """
    from forgetless.cli import compare, search, two_model
    from forgetless.report import load_result, write_report

    values = folder.config
    experiment = values.pop(EXPERIMENT)
    run = {TWO_MODEL: two_model.run, SEARCH: search.run, COMPARE: compare.run}[experiment]
    if tensorboard and experiment != SEARCH:
        raise InputError(
            f"Expected a search for --tensorboard, but {folder.path} is a run of {experiment}. Leave it out."
        )
    with warnings_in_one_line():
        load_result(folder)  # what is damaged or was edited is refused before anything is written
    with contextlib.ExitStack() as held:
        with warnings_in_one_line():
            held.enter_context(folder.writing(str(values["device"])))
        scalars = EpochScalars(folder.path / TENSORBOARD) if tensorboard else None
        held.enter_context(last_words(f"go on with: forgetless resume {shlex.quote(str(folder.path))}"))
        with progress_bar() as show:
            failures = run(folder, values, show, scalars)
        with writable(folder.path / REPORT) as path, warnings_in_one_line():
            write_report([folder], path)
            result = load_result(folder)
    if as_json:
        shown = {"config": folder.config, "environment": folder.environment, **_records_of(result)}
        print(json.dumps({**shown, "summary": result.summary()}, allow_nan=False))  # noqa: T201
    else:
        tell(_table_of(result), f"Report: {path}")
    return exit_code_of(failures)


def search_result(folder: RunFolder) -> "SearchResult":
    """The search in a run folder.

    Args:
        folder: Of a search; of others, it is refused.

    Returns:
        Its records, all or those so far.

    Raises:
        InputError: If it is no search.
    """
    from forgetless.report import ComparisonResult, SearchResult, load_result

    with warnings_in_one_line():
        result = load_result(folder)
    if isinstance(result, ComparisonResult):
        from forgetless import comparison

        below = comparison.units(folder, result.config)[0].path
        raise InputError(
            f"Expected the run of a search, but got the comparison {folder.path}. Name {below} or another."
        )
    if not isinstance(result, SearchResult):
        raise InputError(f"Expected the run of a search, but {folder.path} is of another kind. Name another folder.")
    return result


def _records_of(result: "Result") -> dict[str, Any]:
    from forgetless.report import ComparisonResult, SearchResult

    if isinstance(result, ComparisonResult):
        return {}  # those of its searches are in their own folders
    return (
        {"records": result.records} if isinstance(result, SearchResult) else {"runs": [*result.runs, *result.diverged]}
    )


def _table_of(result: "Result") -> Table:
    from forgetless.report import ComparisonResult, SearchResult, comparison_table, search_table, summary_table

    if isinstance(result, ComparisonResult):
        return comparison_table(result)
    return search_table(result) if isinstance(result, SearchResult) else summary_table(result)
