"""Where a long piece of work stands, for a display."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        done: How much is done; a part of a unit counts as such.
        total: Of how much.
        label: What is being done.
        detail: What is known so far, in words.
    """

    done: float
    total: int
    label: str
    detail: str = ""


OnProgress = Callable[[Progress], None]
