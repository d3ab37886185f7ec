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
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import rich
from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column

from forgetless import __version__, search
from forgetless.errors import InputError, expect_one_of
from forgetless.experiments import two_model
from forgetless.experiments.two_model import TwoModelConfig
from forgetless.report import SearchResult, load_result, search_table, summary_table, write_report
from forgetless.runs import REPORT, RunFolder
from forgetless.search import SearchConfig

EXPERIMENT = "experiment"
TWO_MODEL = "two-model"
SEARCH = "search"
Config = TwoModelConfig | SearchConfig
Show = Callable[[str, float, int], None]

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
    _start(TWO_MODEL, config, Path(config.data).stem, output, overwrite=overwrite, as_json=as_json)


@app.command(name=SEARCH)
def search_command(
    config: Annotated[SearchConfig | None, Parameter(name="*")] = None,
    *,
    compare: bool = False,
    output: Path | None = None,
    overwrite: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Search an architecture on shared weights and measure how much is forgotten: figure 4 of the paper.

    Args:
        config: What to do.
        compare: Three arms with the same seeds: unprotected, matched learning rate, weight plasticity.
        output: Folder for the run; a new one below runs/ by default.
        overwrite: Replace the run folder if it exists.
        as_json: Print the result as JSON on standard output, and nothing else there.
    """
    config = config or SearchConfig()
    if compare:
        config = dataclasses.replace(config, protection=("none", search.MATCHED, "wpl"))
    search.check_memory(config, search.load_task(config))  # bad input is refused before anything is written
    data = Path(config.data).stem if config.data else config.space
    _start(SEARCH, config, data, output, overwrite=overwrite, as_json=as_json)


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


def _start(experiment: str, config: Config, data: str, output: Path | None, *, overwrite: bool, as_json: bool) -> None:
    """Make the run folder, then do all of the run."""
    stamp = dt.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    path = output or Path("runs") / f"{experiment}-{data}-{stamp}"
    values = {EXPERIMENT: experiment, **_as_toml(config)}
    _go_on(RunFolder.create(path, values, device=config.device, overwrite=overwrite), as_json=as_json)


def _as_toml(config: Config) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else str(value) if name == "wiring" else value
        for name, value in dataclasses.asdict(config).items()
    }


def _go_on(folder: RunFolder, *, as_json: bool) -> None:
    """Do what is left of a run, then show it."""
    values = folder.config
    experiment = str(values.pop(EXPERIMENT, None))
    expect_one_of(f"experiment in {folder.path}", experiment, _RUN)
    try:
        with _progress_bar() as show:
            _RUN[experiment](folder, values, show)
    except KeyboardInterrupt:
        _complain(f"interrupted; go on with: forgetless resume {shlex.quote(str(folder.path))}")
        raise
    with _writable(folder.path / REPORT) as path:
        write_report([folder], path)
    result = load_result(folder)
    if as_json:
        records = {"records": result.records} if isinstance(result, SearchResult) else {"runs": result.runs}
        shown = {"config": folder.config, "environment": folder.environment, **records, "summary": result.summary()}
        print(json.dumps(shown, allow_nan=False))  # noqa: T201
    else:
        console = Console()
        console.print(search_table(result) if isinstance(result, SearchResult) else summary_table(result))
        console.print(f"Report: {path}", soft_wrap=True, highlight=False)


def _run_two_model(folder: RunFolder, values: dict[str, Any], show: Show) -> None:
    def on_progress(progress: two_model.Progress) -> None:
        accuracies = "  ".join(f"{name} {100 * value:5.1f} %" for name, value in progress.accuracies.items())
        done = progress.done + progress.step / max(1, progress.num_steps)
        show(f"{progress.label}  {accuracies}", done, progress.total)

    config = TwoModelConfig.from_dict(values)
    two_model.run(config, finished=folder.records(), on_run=folder.append, on_progress=on_progress)


def _run_search(folder: RunFolder, values: dict[str, Any], show: Show) -> None:
    def on_progress(progress: search.SearchProgress) -> None:
        told = "  ".join(f"{name} {value:.3f}" for name, value in progress.values.items())
        show(f"{progress.label}  {told}", progress.done, progress.total)

    def on_epoch(record: dict[str, Any], state: dict[str, Any]) -> None:
        folder.save_checkpoint(state)
        folder.append(record)

    config = SearchConfig.from_dict(values)
    with _warnings_in_one_line():
        checkpoint = folder.load_checkpoint()
    found = folder.records()
    kept = search.reconcile(config, found, checkpoint)
    if kept != found:
        folder.replace_records(kept)
    search.run(config, records=kept, checkpoint=checkpoint, on_epoch=on_epoch, on_progress=on_progress)


_RUN: dict[str, Callable[[RunFolder, dict[str, Any], Show], None]] = {TWO_MODEL: _run_two_model, SEARCH: _run_search}


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        _complain(str(warning.message))


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[Path]:
    try:
        yield path
    except OSError as error:
        raise InputError(f"Expected a file that can be written, but got {path} ({error.strerror}).") from error


@contextlib.contextmanager
def _progress_bar() -> Iterator[Show]:
    """One bar over all runs, with what is being trained and what is known so far, on standard error."""
    columns = (
        TextColumn("{task.description}", table_column=Column(ratio=3, no_wrap=True)),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True, expand=True) as bar:
        task = bar.add_task("loading data", total=None)

        def show(description: str, done: float, total: int) -> None:
            bar.update(task, description=description, total=total, completed=done)

        yield show
