"""When to store what a long piece of work has come to: now and then, and when a signal asks it to stop."""

import contextlib
import copy
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from forgetless import interruption, ranks
from forgetless.errors import InputError

DEFAULT = "10min"
"""How much work a kill may cost."""

State = Mapping[str, Any]

_UNITS = {"": 1.0, "s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*")


def seconds_of(duration: str) -> float:
    """A duration in seconds.

    Args:
        duration: A number with `s`, `min` or `h`; without a unit it is in seconds.

    Raises:
        InputError: If it is anything else.

    >>> seconds_of("10min"), seconds_of("1.5h"), seconds_of("0")
    (600.0, 5400.0, 0.0)
    """
    found = _DURATION.fullmatch(duration)
    if found is None or found[2] not in _UNITS or not math.isfinite(float(found[1])):
        raise InputError(f"Expected a duration such as 10min, 90s or 2h, but got {duration!r}.")
    return float(found[1]) * _UNITS[found[2]]


class Checkpoints:
    """Stores states at points where they are whole.

    Args:
        save: Stores one.
        every_seconds: Of wall clock, at least, between two; 0 stores at every point.
    """

    def __init__(self, save: Callable[[State], object], every_seconds: float) -> None:
        self._save, self._every = save, every_seconds
        self._last = time.monotonic()
        self._kept: State | None = None

    def point(self, make_state: Callable[[], State], *, keep: bool = False) -> None:
        """The work may be stored here; it is, if it is time, or if this process is asked to stop.

        Args:
            make_state: Makes the state; called only where it is stored, or kept.
            keep: Keep a copy of the state where it is not stored, for `kept_if_interrupted`.

        Raises:
            Interrupted: If this process, or one that works with it, is asked to stop; the state is stored then.
        """
        processes = ranks.here()
        is_time = time.monotonic() - self._last >= self._every
        asked, is_due = processes.largest(interruption.signal_number(), int(is_time))
        if asked or is_due:
            self._save(make_state())
            self.stored()
            # None leaves before it is stored, which would end the others. A signal may have come meanwhile.
            (asked,) = processes.largest(asked or interruption.signal_number())
        elif keep:
            self._kept = copy.deepcopy(make_state())
        if asked:
            interruption.stop(asked)

    @contextlib.contextmanager
    def kept_if_interrupted(self) -> Iterator[None]:
        """Within it an interruption stores the state that the last point kept, if there is one."""
        try:
            yield
        except KeyboardInterrupt:
            if self._kept is not None:
                self._save(self._kept)
            raise

    def stored(self) -> None:
        """The state was stored otherwise."""
        self._last, self._kept = time.monotonic(), None


def no_checkpoints() -> Checkpoints:
    """For work that is not stored; it is interrupted at its points all the same."""
    return Checkpoints(lambda state: None, math.inf)  # noqa: ARG005
