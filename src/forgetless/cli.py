"""The command line: arguments to calls, and nothing else.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 2 bad input (one sentence
says what), 130 interrupted (one line says how to go on).
"""

import contextlib
import dataclasses
import datetime as dt
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import rich
from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from forgetless import __version__
from forgetless.errors import InputError, expect_one_of
from forgetless.experiments import two_model
from forgetless.experiments.two_model import TwoModelConfig, TwoModelResult
from forgetless.report import load_result, summary_table, write_report
from forgetless.runs import REPORT, RunFolder

EXPERIMENT = "experiment"
TWO_MODEL = "two-model"

app = App(
    name="forgetless",
    help="Measure and prevent forgetting in networks that share weights.",
    version=__version__,
    default_parameter=Parameter(consume_multiple=True, negative=()),
)


@app.command(name=TWO_MODEL)
def two_model_command(
    config: Annotated[TwoModelConfig | None, Parameter(name="*")] = None,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Train B on some of A's layers and follow what A loses: figures 1 and 3 of the paper.

    Args:
        config: What to do.
        output: Folder for the run; a new one below runs/ by default.
        overwrite: Replace the run folder if it exists.
        as_json: Print the result as JSON on standard output, and nothing else there.
    """
    config = config or TwoModelConfig()
    two_model.load_task(config)  # bad data is refused before anything is written
    stamp = dt.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    path = output or Path("runs") / f"{TWO_MODEL}-{Path(config.data).stem}-{stamp}"
    values = {EXPERIMENT: TWO_MODEL, **_as_toml(config)}
    folder = RunFolder.create(path, values, device=config.device, overwrite=overwrite)
    _go_on(folder, as_json=as_json)


@app.command
def resume(run: Path, /, *, as_json: Annotated[bool, Parameter(name="--json")] = False) -> None:
    """Go on with an interrupted run, to the same numbers as if it had never stopped.

    Args:
        run: The run folder.
        as_json: Print the result as JSON on standard output, and nothing else there.
    """
    _go_on(RunFolder(run), as_json=as_json)


@app.command
def report(run: list[Path], /, *, output: Path | None = None) -> None:
    """Make one HTML page from any number of run folders.

    Args:
        run: The run folders.
        output: The page; report.html in the first folder by default.

    Raises:
        InputError: If there is no folder, or one is no run folder.
    """
    folders = [RunFolder(path) for path in run]
    if not folders:
        raise InputError("Expected at least one run folder, but got none.")
    for folder in folders:
        load_result(folder)  # a damaged one is refused before anything is written
    with _writable(output or folders[0].path / REPORT) as path:
        write_report(folders, path)
    rich.print(f"Report: {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; those of this process if None.

    Returns:
        The exit code: 0 done, 2 bad input, 130 interrupted.
    """
    try:
        app(
            list(sys.argv[1:] if arguments is None else arguments),
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except InputError as error:
        _complain(str(error))
        return 2
    except CycloptsError as error:
        _complain(_one_sentence(error))
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _complain(sentence: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"forgetless: {sentence}", markup=False)


def _one_sentence(error: CycloptsError) -> str:
    """Cyclopts's own message; a bad value that our configuration refused is told in the configuration's words."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split())


def _as_toml(config: TwoModelConfig) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else str(value) if name == "wiring" else value
        for name, value in dataclasses.asdict(config).items()
    }


def _config_of(folder: RunFolder) -> TwoModelConfig:
    values = folder.config
    expect_one_of(f"experiment in {folder.path}", str(values.pop(EXPERIMENT, None)), [TWO_MODEL])
    return TwoModelConfig.from_dict(values)


def _go_on(folder: RunFolder, *, as_json: bool) -> None:
    """Do what is left of a run, then show it."""
    config = _config_of(folder)
    try:
        with _progress_bar() as show:
            result = two_model.run(config, finished=folder.records(), on_run=folder.append, on_progress=show)
    except KeyboardInterrupt:
        _complain(f"interrupted; go on with: forgetless resume {shlex.quote(str(folder.path))}")
        raise
    with _writable(folder.path / REPORT) as path:
        write_report([folder], path)
    if as_json:
        print(json.dumps(_as_json(result, folder), allow_nan=False))  # noqa: T201
    else:
        console = Console()
        console.print(summary_table(result))
        console.print(f"Report: {path}", soft_wrap=True, highlight=False)


def _as_json(result: TwoModelResult, folder: RunFolder) -> dict[str, Any]:
    return {
        "config": folder.config,
        "environment": folder.environment,
        "runs": result.runs,
        "summary": result.summary(),
    }


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[Path]:
    try:
        yield path
    except OSError as error:
        raise InputError(f"Expected a file that can be written, but got {path} ({error.strerror}).") from error


@contextlib.contextmanager
def _progress_bar() -> Iterator[Callable[[two_model.Progress], None]]:
    """One bar over all runs, with what is being trained and its present accuracies, on standard error."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True, expand=True) as bar:
        task = bar.add_task("loading data", total=None)

        def show(progress: two_model.Progress) -> None:
            accuracies = "  ".join(f"{name} {100 * value:5.1f} %" for name, value in progress.accuracies.items())
            bar.update(
                task,
                description=f"{progress.label}  {accuracies}",
                total=progress.total,
                completed=progress.done + progress.step / max(1, progress.num_steps),
            )

        yield show
