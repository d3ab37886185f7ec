"""What the command line says and shows: results on standard output, the rest on standard error."""

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table
from rich.text import Text

from forgetless import interruption, ranks
from forgetless.errors import InputError, printable

if TYPE_CHECKING:
    from forgetless.progress import OnProgress, Progress

AGAIN = "run the same command again"
AGAIN_KEPT = f"{AGAIN}: what is done is kept"

Show = Callable[[str, float, int], None]
"""Shows a description of one or two lines, how much is done, and of how much."""

_SECONDS_BETWEEN_LINES = 60.0


def tell(*shown: Table | str) -> None:
    """On standard output; brackets in names are no markup."""
    console = Console(markup=False)
    for each in shown:
        if isinstance(each, str):
            console.print(printable(each), soft_wrap=True, highlight=False)
        else:
            console.print(each)


def complain(sentence: str) -> None:
    """On standard error, in one line; where several processes work, all but the first say which they are."""
    speaker = "" if ranks.is_first() else f"rank {os.environ['RANK']}: "
    line = printable(f"forgetless: {speaker}{sentence}")
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(line)


def exit_code_of(failures: Mapping[str, str]) -> int:
    """The exit code where some of the work failed."""
    for name, reason in failures.items():
        complain(f"{name} failed: {reason}")
    return int(bool(failures))


@contextlib.contextmanager
def last_words(advice: str) -> Iterator[None]:
    """Within it an interruption ends with one line that says how to go on."""

    def say() -> None:
        complain(f"interrupted; {advice}")

    with interruption.last_words(say):
        yield


@contextlib.contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Within it a warning is said at the end, once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        complain(message)


@contextlib.contextmanager
def writable(path: Path) -> Iterator[Path]:
    """Within it, what cannot be written is bad input."""
    try:
        yield path
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error  # ValueError: a name with NUL
        raise InputError(f"Expected a file that can be written, but got {path} ({reason}).") from error


@contextlib.contextmanager
def progress_bar() -> Iterator[Show]:
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
    console, last = Console(stderr=True, soft_wrap=True, highlight=False, markup=False), time.monotonic()

    def show(description: str, done: float, total: int) -> None:
        nonlocal last
        first, _, rest = description.rstrip().partition("\n")
        first, below.plain = printable(first), printable(rest)
        bar.update(task, description=first, total=total, completed=done)
        if not console.is_terminal and time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            console.print(f"{done:.0f}/{total}  {first}  {below.plain}".rstrip())

    if not console.is_terminal:
        yield show
        return
    with Live(Group(bar, below), console=console, transient=True):
        yield show


def shown(show: Show) -> "OnProgress":
    """Show progress: what is being done, and below it what is known so far and how long it takes yet."""

    def on_progress(progress: "Progress") -> None:
        left = "" if progress.seconds_left is None else f"{timedelta(seconds=round(progress.seconds_left))} left"
        below = "; ".join(filter(None, (progress.detail, left)))
        show(f"{progress.label}\n{below}", progress.done, progress.total)

    return on_progress
