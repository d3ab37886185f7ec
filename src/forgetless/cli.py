"""The command line: arguments to calls, and nothing else.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 done but for what failed
twice (each is named on standard error), 2 bad input (one sentence says what), 130, 143 or 129 stopped by Ctrl-C,
SIGTERM or SIGHUP (one line says how to go on).
"""

import contextlib
import dataclasses
import datetime as dt
import functools
import json
import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

from cyclopts import App, ArgumentCollection, CoercionError, CycloptsError, Parameter
from cyclopts.validators import Number
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table
from rich.text import Text

from forgetless import __version__, comparison, interruption, search
from forgetless.checkpoints import DEFAULT
from forgetless.comparison import ComparisonConfig
from forgetless.configuration import MOST_THREADS
from forgetless.errors import InputError, expect_one_of, printable
from forgetless.evaluation.benchmark import make_benchmark
from forgetless.evaluation.run import EvaluatedRun, EvaluationConfig, run_evaluation
from forgetless.evaluation.trainings import TrainingStore, default_store
from forgetless.experiments import two_model
from forgetless.experiments.two_model import TwoModelConfig
from forgetless.protection import MATCHED
from forgetless.report import (
    ComparisonResult,
    Result,
    SearchResult,
    comparison_table,
    evaluation_table,
    interference_table,
    load_result,
    search_table,
    summary_table,
    write_interference,
    write_report,
)
from forgetless.runs import (
    COMPARE,
    EVALUATION,
    EXPERIMENT,
    REPORT,
    SEARCH,
    TENSORBOARD,
    TWO_MODEL,
    RunFolder,
    write_atomically,
    write_sealed,
)
from forgetless.search import SearchConfig
from forgetless.tasks import ImageClassification, LanguageModelling
from forgetless.tensorboard import EpochScalars, expect_tensorboard

_SECONDS_BETWEEN_LINES = 60.0
_AGAIN = "run the same command again"
_AGAIN_KEPT = f"{_AGAIN}: what is done is kept"

Config = TwoModelConfig | SearchConfig
Show = Callable[[str, float, int], None]
Failures = Mapping[str, str]


def _expect_whole_numbers(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuse 1.5 where an int is asked for: cyclopts rounds it in silence."""
    for argument in arguments:
        kinds = set(get_args(argument.hint) or (argument.hint,))
        if int not in kinds or float in kinds:
            continue
        for token in argument.tokens:
            with contextlib.suppress(ValueError):
                if not float(token.value).is_integer():
                    raise CoercionError(
                        msg=f"Expected {argument.name} to be a whole number, but got {token.value}.", argument=argument
                    )


app = App(
    name="forgetless",
    config=_expect_whole_numbers,
    help="Measure and prevent forgetting in networks that share weights.",
    version=__version__,
    suppress_keyboard_interrupt=False,  # main has an exit code for each signal
    default_parameter=Parameter(consume_multiple=True, negative=(), json_list=False),
)


@app.command(name=TWO_MODEL)
def two_model_command(
    config: Annotated[TwoModelConfig | None, Parameter(name="*")] = None,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Train B on some of A's layers and follow what A loses: figures 1 and 3 of the paper.

    Args:
        config: What to do.
        output: Folder for the run; a new one below runs/ by default.
        overwrite: Replace the run folder if it exists.
        as_json: Print the result as JSON on standard output, and nothing else there.
    """
    config = config or TwoModelConfig()
    two_model.check_memory(config, two_model.load_task(config))  # bad input is refused before anything is written
    return _start(TWO_MODEL, config, output, overwrite=overwrite, as_json=as_json)


@app.command(name=SEARCH)
def search_command(
    config: Annotated[SearchConfig | None, Parameter(name="*")] = None,
    *,
    compare: bool = False,
    output: Path | None = None,
    overwrite: bool = False,
    tensorboard: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Search an architecture on shared weights and measure how much is forgotten: figure 4 of the paper.

    Args:
        config: What to do.
        compare: Three arms with the same seeds: unprotected, matched learning rate, weight plasticity.
        output: Folder for the run; a new one below runs/ by default.
        overwrite: Replace the run folder if it exists.
        tensorboard: Write every epoch's numbers as scalars below the run folder, too.
        as_json: Print the result as JSON on standard output, and nothing else there.
    """
    config = config or SearchConfig()
    if compare and not config.trains_shared_weights:
        raise InputError(
            f"Expected a strategy that trains shared weights for --compare, but got {config.strategy}. Leave --compare "
            "out: there is nothing to protect."
        )
    if compare and config.protection != SearchConfig().protection:
        raise InputError(
            "Expected --compare or --protection, but got both. --compare chooses none, matched-lr and wpl."
        )
    if compare:
        config = dataclasses.replace(config, protection=("none", MATCHED, "wpl"))
    if tensorboard:
        expect_tensorboard()
    search.check_memory(config, search.load_task(config))  # bad input is refused before anything is written
    return _start(SEARCH, config, output, overwrite=overwrite, as_json=as_json, tensorboard=tensorboard)


@app.command(name=COMPARE)
def compare_command(
    config: Annotated[ComparisonConfig | None, Parameter(name="*")] = None,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Protections, strategies and seeds side by side on one space: one table, one page, and what is significant.

    Args:
        config: What to do.
        output: Folder for all searches and the report; a new one below runs/ by default.
        overwrite: Replace the folder if it exists.
        as_json: Print the result as JSON on standard output, and nothing else there.
    """
    config = config or ComparisonConfig()
    comparison.check(config)  # bad input is refused before anything is written
    return _start(COMPARE, config, output, overwrite=overwrite, as_json=as_json)


@app.command
def resume(
    run: Path, /, *, tensorboard: bool = False, as_json: Annotated[bool, Parameter(name="--json")] = False
) -> int:
    """Go on with an interrupted run, to the same numbers as if it had never stopped.

    Args:
        run: The run folder.
        tensorboard: Write every epoch's numbers as scalars below the run folder, too; for a search.
        as_json: Print the result as JSON on standard output, and nothing else there.
    """
    with _warnings_in_one_line():
        folder = RunFolder.open_to_go_on(run)
    return _go_on(folder, as_json=as_json, tensorboard=tensorboard)


@app.command(name="interference")
def interference_command(
    run: Path,
    /,
    *,
    models: Annotated[int, Parameter(validator=Number(gte=2, lte=1000))] = 8,
    batches: Annotated[int | None, Parameter(validator=Number(gte=1, lt=2**63))] = None,
    seed: int | None = None,
    protection: Annotated[tuple[str, ...], Parameter(show_default=False)] = (),
    output: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Measure on finished searches who overwrites whom: each of a sample's architectures by training each of them.

    Args:
        run: The run folder of a search.
        models: Architectures to draw, the same for every protection.
        batches: How many each is trained for; the search's batches_per_model by default.
        seed: Of the searches; their first by default, or, where none is finished, that of the newest checkpoint.
        protection: Of the searches; all that are finished by default.
        output: Folder for interference.json and interference.png; the run folder by default.
        as_json: Print the result as JSON on standard output, and nothing else there.

    Raises:
        InputError: If the run is no search, or has no state of those asked for.
    """
    folder = RunFolder(run)
    result = _search_result(folder)
    states = _trained_states(folder, result.config, seed, protection)
    with _last_words(_AGAIN), _progress_bar() as show:
        arms = search.measure_arms(
            result.config, states, num_models=models, num_batches=batches, on_progress=_show_search(show)
        )
    with _writable(output or folder.path) as path:
        picture = write_interference(result, arms, folder, path)
    if as_json:
        print(json.dumps({"arms": arms}, allow_nan=False))  # noqa: T201
    else:
        _tell(interference_table(result, arms), f"Picture: {picture}")


@app.command(name="evaluate")
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
    """Is it better than random? What finished searches hand over, against as many architectures drawn uniformly.

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
    config = config or EvaluationConfig()
    runs = [_evaluated(name, RunFolder(path)) for path, name in _names(run).items()]
    store = None if config.truth is not None else TrainingStore(trainings or default_store(), checkpoint_every)
    with _last_words(_AGAIN_KEPT), _progress_bar() as show, _warnings_in_one_line():
        found = run_evaluation(config, runs, store, on_progress=_show_search(show))
    with _writable(output or run[0]) as path:
        path.mkdir(parents=True, exist_ok=True)
        write_sealed(path / EVALUATION, found)
    if as_json:
        print(json.dumps(found, allow_nan=False))  # noqa: T201
    else:
        _tell(evaluation_table(found), f"Numbers: {path / EVALUATION}")
    failures = found["failures"]
    return _told({f"training {architecture} with seed {seed}": reason for architecture, seed, reason in failures})


@app.command(name="benchmark")
def benchmark_command(
    name: str,
    /,
    *,
    output: Path | None = None,
    trainings: Path | None = None,
    workers: Annotated[int | None, Parameter(validator=Number(gte=1, lte=MOST_THREADS))] = None,
    cluster: str | None = None,
    limit: Annotated[int | None, Parameter(validator=Number(gte=1, lt=2**63))] = None,
    checkpoint_every: str = DEFAULT,
) -> None:
    """Make one of the benchmarks that come with forgetless again: every architecture of a space, from scratch.

    Args:
        name: recurrent-3 or nas201-digits.
        output: The file; NAME.csv by default.
        trainings: Folder of trainings, from which an interrupted call goes on; FORGETLESS_TRAININGS or runs/trainings
            by default.
        workers: Processes, or tasks at a time on a cluster; one per core by default.
        cluster: The address of a Ray cluster, or `local` to start one here; processes by default.
        limit: Only the first so many architectures.
        checkpoint_every: How much work of a training a kill may cost, such as 10min, 90s or 2h.
    """
    with _last_words(_AGAIN_KEPT), _progress_bar() as show, _warnings_in_one_line():
        store = TrainingStore(trainings or default_store(), checkpoint_every)
        text = make_benchmark(
            name, store, workers=workers, cluster=cluster, limit=limit, on_progress=_show_search(show)
        )
    with _writable(output or Path(f"{name}.csv")) as path:
        write_atomically(path, text)
    _tell(f"Benchmark: {path}")


def _evaluated(name: str, folder: RunFolder) -> EvaluatedRun:
    result = _search_result(folder)
    load_state = functools.partial(folder.load_trained, is_finished=True)
    return EvaluatedRun(name, result.config, result.records, load_state)


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """What folders are called: as each is named where that tells them apart, else by the paths as given."""
    if len(set(paths)) < len(paths):
        raise InputError(f"Expected different run folders, but got {', '.join(map(str, paths))}. Name each once.")
    names = [path.resolve().name for path in paths]
    return dict(zip(paths, names if len(set(names)) == len(names) else map(str, paths), strict=True))


def _search_result(folder: RunFolder) -> SearchResult:
    with _warnings_in_one_line():
        result = load_result(folder)
    if isinstance(result, ComparisonResult):
        below = comparison.units(folder, result.config)[0].path
        raise InputError(
            f"Expected the run of a search, but got the comparison {folder.path}. Name {below} or another."
        )
    if not isinstance(result, SearchResult):
        raise InputError(f"Expected the run of a search, but {folder.path} is of another kind. Name another folder.")
    return result


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
    with _writable(output or folders[0].path / REPORT) as path, _warnings_in_one_line():
        write_report(folders, path)
    _tell(f"Report: {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; those of this process if None.

    Returns:
        The exit code: 0 done, 1 done but for what failed, 2 bad input, 130, 143 or 129 stopped by a signal.
    """
    try:
        with interruption.handled():
            code = app(
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
    except interruption.Interrupted as error:
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        what = f"to read and write {error.filename}" if error.filename is not None else "to read and write files"
        _complain(f"Expected to be able {what}, but got: {error.strerror or error}.")
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _complain(
            "Expected sizes that fit the memory, but it ran out. Choose smaller models or batches, or fewer workers."
        )
        return 2
    return code or 0


def _is_out_of_memory(error: Exception) -> bool:
    """Also where the CPU's allocator of PyTorch says so, whose error has no type of its own."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool({"MemoryError", "OutOfMemoryError"} & kinds) or "can't allocate memory" in str(error)


def _tell(*shown: Table | str) -> None:
    """On standard output; brackets in names are no markup."""
    console = Console(markup=False)
    for each in shown:
        if isinstance(each, str):
            console.print(printable(each), soft_wrap=True, highlight=False)
        else:
            console.print(each)


def _complain(sentence: str) -> None:
    line = printable(f"forgetless: {sentence}")
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(line)


def _one_sentence(error: CycloptsError) -> str:
    """Cyclopts's own message; a bad value that our configuration refused is told in the configuration's words."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split())


def _start(
    experiment: str,
    config: Config,
    output: Path | None,
    *,
    overwrite: bool,
    as_json: bool,
    tensorboard: bool = False,
) -> int:
    """Make the run folder, then do all of the run."""
    stamp = dt.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    path = output or Path("runs") / f"{experiment}-{_short_name(config.data)}-{stamp}"
    values = {EXPERIMENT: experiment, **config.to_toml()}
    with _warnings_in_one_line():
        folder = RunFolder.create(path, values, device=config.device, overwrite=overwrite)
    return _go_on(folder, as_json=as_json, tensorboard=tensorboard)


def _short_name(data: str) -> str:
    """What data is called in the name of a folder: without what cannot be printed, and not too long for one."""
    name = "".join(character if character.isprintable() else "_" for character in Path(data).stem)
    return name.encode()[:100].decode(errors="ignore")  # names have 255 bytes at most, and others are made of it


def _go_on(folder: RunFolder, *, as_json: bool, tensorboard: bool = False) -> int:
    """Do what is left of a run, then show it; the exit code."""
    values = folder.config
    experiment = values.pop(EXPERIMENT)
    if tensorboard and experiment != SEARCH:
        raise InputError(
            f"Expected a search for --tensorboard, but {folder.path} is a run of {experiment}. Leave it out."
        )
    with _warnings_in_one_line():
        load_result(folder)  # what is damaged or was edited is refused before anything is written
    with contextlib.ExitStack() as held:
        with _warnings_in_one_line():
            held.enter_context(folder.writing(str(values["device"])))
        scalars = EpochScalars(folder.path / TENSORBOARD) if tensorboard else None
        held.enter_context(_last_words(f"go on with: forgetless resume {shlex.quote(str(folder.path))}"))
        with _progress_bar() as show:
            failures = _RUN[experiment](folder, values, show, scalars)
        with _writable(folder.path / REPORT) as path, _warnings_in_one_line():
            write_report([folder], path)
            result = load_result(folder)
    if as_json:
        shown = {"config": folder.config, "environment": folder.environment, **_records_of(result)}
        print(json.dumps({**shown, "summary": result.summary()}, allow_nan=False))  # noqa: T201
    else:
        _tell(_table_of(result), f"Report: {path}")
    return _told(failures)


@contextlib.contextmanager
def _last_words(advice: str) -> Iterator[None]:
    """Within it an interruption ends with one line that says how to go on."""

    def say() -> None:
        _complain(f"interrupted; {advice}")

    with interruption.last_words(say):
        try:
            yield
        except KeyboardInterrupt:
            say()
            raise


def _records_of(result: Result) -> dict[str, Any]:
    if isinstance(result, ComparisonResult):
        return {}  # those of its searches are in their own folders
    return (
        {"records": result.records} if isinstance(result, SearchResult) else {"runs": [*result.runs, *result.diverged]}
    )


def _table_of(result: Result) -> Table:
    if isinstance(result, ComparisonResult):
        return comparison_table(result)
    return search_table(result) if isinstance(result, SearchResult) else summary_table(result)


def _told(failures: Mapping[str, str]) -> int:
    """The exit code where some of the work failed."""
    for name, reason in failures.items():
        _complain(f"{name} failed: {reason}")
    return int(bool(failures))


def _run_comparison(folder: RunFolder, values: dict[str, Any], show: Show, _: EpochScalars | None) -> Failures:
    with _warnings_in_one_line():
        return comparison.run_comparison(folder, ComparisonConfig.from_dict(values), on_progress=_show_search(show))


def _run_two_model(folder: RunFolder, values: dict[str, Any], show: Show, _: EpochScalars | None) -> Failures:
    def on_progress(progress: two_model.Progress) -> None:
        accuracies = "  ".join(f"{name} {100 * value:5.1f} %" for name, value in progress.accuracies.items())
        done = progress.done + progress.step / max(1, progress.num_steps)
        show(f"{progress.label}\n{accuracies}", done, progress.total)

    with _warnings_in_one_line():
        two_model.run_in_folder(TwoModelConfig.from_dict(values), folder, on_progress=on_progress)
    return {}


def _run_search(folder: RunFolder, values: dict[str, Any], show: Show, scalars: EpochScalars | None) -> Failures:
    config = SearchConfig.from_dict(values)
    on_record = None if scalars is None else scalars.write
    with _warnings_in_one_line():
        search.run_in_folder(config, folder, on_record=on_record, on_progress=_show_search(show))
    return {}


def _show_search(show: Show) -> Callable[[search.SearchProgress], None]:
    def on_progress(progress: search.SearchProgress) -> None:
        told = "  ".join(_in_words(name, value) for name, value in progress.values.items())
        show(f"{progress.label}\n{told}", progress.done, progress.total)

    return on_progress


def _in_words(name: str, value: float) -> str:
    if name == LanguageModelling.error_name:
        return f"perplexity {math.exp(min(value, 700.0)):.0f}"
    return f"accuracy {100 * (1 - value):.1f} %" if name == ImageClassification.error_name else f"{name} {value:.3f}"


def _trained_states(
    folder: RunFolder, config: SearchConfig, seed: int | None, protection: Sequence[str]
) -> list[dict[str, Any]]:
    """The states of the finished arms that are asked for, or else the newest checkpoint if it may be meant."""
    for name in protection:
        expect_one_of("protection", name, config.protection)
    asked = [arm for arm in search.search_arms(config) if not protection or arm.protection in protection]
    finished = [arm for arm in asked if arm.seed == (config.first_seed if seed is None else seed)]
    finished.sort(key=lambda arm: config.protection.index(arm.protection))
    with _warnings_in_one_line():
        found = [folder.load_trained(arm.seed, arm.protection) for arm in finished]
        if not any(found):
            found = [folder.load_checkpoint()]
    meant = finished if seed is not None else asked
    states = [state for state in found if state is not None and search.SearchArm(**state["arm"]) in meant]
    if not states:
        which = " of those asked for" if seed is not None or protection else ""
        raise InputError(
            f"Expected a finished search or a checkpoint in {folder.path}, but got none{which}. Go on with "
            "`forgetless resume`."
        )
    return states


_RUN: dict[str, Callable[[RunFolder, dict[str, Any], Show, EpochScalars | None], Failures]] = {
    TWO_MODEL: _run_two_model,
    SEARCH: _run_search,
    COMPARE: _run_comparison,
}


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        _complain(message)


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[Path]:
    try:
        yield path
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error  # ValueError: a name with NUL
        raise InputError(f"Expected a file that can be written, but got {path} ({reason}).") from error


@contextlib.contextmanager
def _progress_bar() -> Iterator[Show]:
    """One bar over all runs with what is being done, and below it what is known so far, on standard error.

    What is shown is a description of one or two lines; the second goes below the bar. Where standard error is no
    terminal, such as a log file, a line a minute tells the same.
    """
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=3, no_wrap=True)),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
    )
    bar, below = Bar(*columns, expand=True), Text(style="dim", no_wrap=True, overflow="ellipsis")
    task = bar.add_task("loading data", total=None)
    console, told = Console(stderr=True, soft_wrap=True, highlight=False, markup=False), time.monotonic()

    def show(description: str, done: float, total: int) -> None:
        nonlocal told
        first, _, rest = description.rstrip().partition("\n")
        first, below.plain = printable(first), printable(rest)
        bar.update(task, description=first, total=total, completed=done)
        if not console.is_terminal and time.monotonic() - told >= _SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            console.print(f"{done:.0f}/{total}  {first}  {below.plain}".rstrip())

    if not console.is_terminal:
        yield show
        return
    with Live(Group(bar, below), console=console, transient=True):
        yield show
