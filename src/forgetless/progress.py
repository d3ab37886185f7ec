"""Where a long piece of work stands, for a display."""

import sys
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        done: How much is done; a part of a unit counts as such.
        total: Of how much; 0 where that is not known.
        label: What is being done.
        detail: What is known so far, in words.
        seconds_left: How long it takes yet, at the present speed; None where that is not known.
    """

    done: float
    total: int
    label: str
    detail: str = ""
    seconds_left: float | None = None


OnProgress = Callable[[Progress], None]


def shown(progress: Progress) -> None:
    """Write to stderr where the work stands: in one line of a terminal, else a line for each tenth of it.

    Args:
        progress: Of work that is counted in whole units, one after the other.
    """
    done, total = round(progress.done), progress.total
    of = f" of {total}" if total else ""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{progress.label}: {done}{of}" + ("\n" if done == total else ""))
    elif done % max(1, total // 10) == 0 or done == total:
        sys.stderr.write(f"{progress.label}: {done}{of}\n")
    sys.stderr.flush()
