"""What the scripts in this folder share: a page of results, its tables, and how its numbers are written."""

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgetless.experiments import load_result
from forgetless.forgetting import Interval
from forgetless.options import command_line
from forgetless.report.formats import duration
from forgetless.runs import RunFolder

HERE = Path(__file__).parent
PAGES = HERE / "pages"

Cells = dict[str, str]
"""A row of a table: column → cell."""


@dataclass(frozen=True)
class Page:
    """One experiment, or one topic."""

    name: str
    """Of its file, without `.md`."""
    title: str
    question: str
    answer: str
    """One sentence; the index repeats it."""
    parts: Sequence[str]
    more: str = ""
    """The rest of the answer."""
    is_listed: bool = True
    """Whether the index has it; another page links to one that it has not."""

    def text(self) -> str:
        blocks = [
            f"# {self.title}",
            f"**Question.** {self.question}",
            f"**Answer.** {self.answer} {self.more}".strip(),
            *self.parts,
            "[All results](../README.md)",
        ]
        return "\n\n".join(blocks) + "\n"

    def line(self) -> str:
        """What the index says of it."""
        return f"- [{self.title}](pages/{self.name}.md): {self.answer}"


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@functools.cache
def load(path: Path) -> Any:
    """The result of a run folder; read once, because several pages tell of it."""
    return load_result(RunFolder(path))


def run_block(path: Path, time: str) -> str:
    """The section that says how a run was made, and how long that took."""
    folder, config = RunFolder(path), load(path).config
    seeds = getattr(config, "search", config).run.seeds
    return command_block(
        command_line(config, folder.header.experiment),
        f"{seeds} seeds, one thread, {environment(folder.environment)}. {time} Run folder: `results/"
        f"{path.relative_to(HERE)}`.",
    )


def time_taken(seconds: float) -> str:
    return f"It took {duration(seconds)} of one process."


def command_block(command: str, note: str) -> str:
    """The command of a page, with what else is to be known of it."""
    return f"```\n{command}\n```\n\n{note}"


def environment(recorded: Mapping[str, Any]) -> str:
    """Where something was measured, of what was recorded."""
    names = {"cpu": "", "processor": "", "python": "Python ", "torch": "PyTorch ", "git_revision": "revision "}
    threads = f", {recorded['threads']} thread{'s' * (recorded['threads'] > 1)}" if "threads" in recorded else ""
    return ", ".join(f"{name}{recorded[key]}" for key, name in names.items() if key in recorded) + threads


def table(rows: Sequence[Cells]) -> str:
    """Rows that have the same columns, as Markdown."""
    lines = [" | ".join(rows[0]), "|".join(["---"] * len(rows[0])), *(" | ".join(row.values()) for row in rows)]
    return "\n".join(f"| {line} |" if i != 1 else f"|{line}|" for i, line in enumerate(lines))


def only(rows: Iterable[Cells], *columns: str) -> list[Cells]:
    """The rows with these columns."""
    return [{column: row[column] for column in columns} for row in rows]


def varying(rows: Sequence[Cells], constant: Mapping[str, Callable[[str], str]]) -> tuple[list[Cells], str]:
    """The rows without the columns of `constant` in which all agree, and a sentence of what they agree on."""
    dropped = [column for column in constant if len({row[column] for row in rows}) == 1]
    kept = [column for column in rows[0] if column not in dropped]
    agreed = ", ".join(constant[column](rows[0][column]) for column in dropped)
    return only(rows, *kept), f"In every row: {agreed}." if agreed else ""


def known(interval: Interval | None) -> Interval:
    """An interval that a finished run has."""
    assert interval is not None
    return interval


def shown(interval: Interval | Mapping[str, Any] | None, scale: float, digits: int) -> str:
    """A mean with its interval; with a negative scale its ends change places."""
    if interval is None:
        return "–"
    if isinstance(interval, Mapping):
        interval = Interval(**interval)
    ends = sorted(scale * end for end in (interval.low, interval.high) if end is not None)
    # Adding 0 to the rounded number turns −0.00 into 0.00.
    mean, *texts = [f"{round(end, digits) + 0:.{digits}f}" for end in (scale * interval.mean, *ends)]
    return mean if len(texts) < 2 else f"{mean} ({texts[0]} … {texts[1]})"


def percent(interval: Interval | Mapping[str, Any] | None, digits: int = 2) -> str:
    return shown(interval, 100, digits)
