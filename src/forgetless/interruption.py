"""Stopping when a signal asks for it: what can be stored is stored, every process ends, and nothing is left behind.

The first SIGINT, SIGTERM or SIGHUP is a request. Loops ask `is_asked()` where their state is whole, store it, and call
`stop_if_asked()`. Where nothing asks within the grace, `Interrupted` is raised wherever the program is. Where even that
does not end it, as in a long call of a library, it is ended with all its children. A second signal does that at once.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType

GRACE_SECONDS = 2.0
"""How long a loop has to store what it has."""
LIMIT_SECONDS = 4.5
"""When a process that was asked to stop is ended, wherever it is."""

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_OF_THE_TERMINAL = [number for number in _SIGNALS if number != signal.SIGTERM]


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to stop.

    Args:
        signal_number: Which.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"signal {signal_number}")
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended: 130, 143 or 129."""
        return 128 + self.signal_number


class _State:
    """What was asked of this process, and how it answers."""

    is_handled = False
    is_idle_worker = False
    signal_number: int | None = None
    watchdog: threading.Timer | None = None
    last_words: Callable[[], object] | None = None
    children: frozenset[tuple[int, int]] = frozenset()
    """Processes that there were when it was asked. If one of them ends, its own children have another parent."""


def is_asked() -> bool:
    """Whether a signal has asked this process to stop."""
    return _State.signal_number is not None


def stop_if_asked() -> None:
    """Stop, if a signal has asked for it and what can be stored is stored.

    Raises:
        Interrupted: If so.
    """
    if _State.signal_number is not None:
        _alarm(0)
        raise Interrupted(_State.signal_number)


@contextlib.contextmanager
def handled(*, to_the_end: bool = False) -> Iterator[None]:
    """Within it signals are requests. Outside of the main thread, which alone may handle signals, it does nothing.

    A signal that is ignored stays ignored, as SIGHUP is under `nohup`.

    Args:
        to_the_end: The process is over with it. A signal while Python cleans up then ends it, without another word.
    """
    if _State.is_handled or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _install()
    stop_counting = _count()
    try:
        yield
    finally:
        stop_counting()
        _alarm(0)
        if _State.watchdog is not None:
            _State.watchdog.cancel()
        for number, handler in before.items():
            signal.signal(number, _leave if to_the_end else handler)
        _State.is_handled, _State.signal_number, _State.watchdog, _State.last_words = False, None, None, None
        _State.children = frozenset()


def _install() -> dict[int, signal.Handlers | Callable[..., object] | int | None]:
    _State.is_handled = True
    wanted: dict[int, Callable[[int, FrameType | None], None]] = {
        number: _ask for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN
    }
    if hasattr(signal, "SIGALRM"):
        wanted[signal.SIGALRM] = lambda number, frame: stop_if_asked()  # noqa: ARG005
    return {number: signal.signal(number, handler) for number, handler in wanted.items()}


def _count() -> Callable[[], None]:
    """End this process at the second signal, whatever its main thread does; return what puts an end to it.

    Python calls handlers between two instructions. Of two signals during one long call of a library, it tells of one.
    """
    reader, writer = socket.socketpair()  # a pipe would not do on Windows
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def count() -> None:
        asked = 0
        while received := reader.recv(64):
            for number in received:
                asked += number in _SIGNALS
                if asked > 1:
                    end_at_once(number)

    def stop() -> None:
        signal.set_wakeup_fd(before)
        writer.close()  # which ends the thread
        thread.join()
        reader.close()

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    return stop


def _forget_count() -> None:
    if _State.is_handled:  # the parent would count this process's signals as its own
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_count)


def _ask(number: int, _frame: FrameType | None) -> None:
    if _State.signal_number is not None or _State.is_idle_worker:
        end_at_once(number)
    _State.signal_number = number
    _State.children = frozenset(_descendants())
    # A thread of its own, because a handler waits for a library's long call to end.
    _State.watchdog = threading.Timer(LIMIT_SECONDS, end_at_once, [number])
    _State.watchdog.daemon = True
    _State.watchdog.start()
    if not _alarm(GRACE_SECONDS):
        stop_if_asked()


def _alarm(seconds: float) -> bool:
    """Call `stop_if_asked` in so many seconds, or not if 0; False where there are no alarms, as on Windows."""
    if not hasattr(signal, "setitimer"):
        return False
    signal.setitimer(signal.ITIMER_REAL, seconds)
    return True


def _leave(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


@contextlib.contextmanager
def last_words(say: Callable[[], object]) -> Iterator[None]:
    """Within it, what is said when the process is ended at once, such as how to go on.

    Args:
        say: Prints it.
    """
    before, _State.last_words = _State.last_words, say
    try:
        yield
    finally:
        _State.last_words = before


def end_at_once(number: int) -> None:
    """Kill every process that this one or its children started and end this one, without any cleaning up.

    Args:
        number: Of the signal, for the exit code.
    """
    for child in multiprocessing.active_children():
        child.kill()
    with contextlib.suppress(Exception):
        for pid, begun in [*_State.children, *_descendants()]:
            with contextlib.suppress(OSError):
                if _parent_and_begin(pid)[1] == begun:  # not another process with the number of one that is gone
                    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(Exception):
        if _State.last_words is not None:
            _State.last_words()
        sys.stderr.flush()
    os._exit(128 + number)


def _start_accountant() -> None:
    """Where this process is ended at once, Python's resource tracker removes semaphores; it need not warn of them."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [before, "ignore:resource_tracker:UserWarning"]))
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _descendants() -> list[tuple[int, int]]:
    """Number and begin of each, such as those of Ray, parents first; but for the one that removes semaphores."""
    children: dict[int, list[tuple[int, int]]] = {}
    for folder in Path("/proc").glob("[0-9]*"):  # none where there is no /proc
        with contextlib.suppress(OSError):
            pid = int(folder.name)
            parent, begun = _parent_and_begin(pid)
            children.setdefault(parent, []).append((pid, begun))
    found: list[tuple[int, int]] = []
    known = [os.getpid()]
    while known:
        next_ones = [child for parent in known for child in children.get(parent, ())]
        found += next_ones
        known = [pid for pid, _ in next_ones]
    return [each for each in found if each[0] != getattr(resource_tracker._resource_tracker, "_pid", None)]


def _parent_and_begin(pid: int) -> tuple[int, int]:
    """The parent of a process, and when it began, in ticks since the machine did."""
    after_name = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return int(after_name[1]), int(after_name[19])


# ---- workers -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def starting_children() -> Iterator[None]:
    """Within it child processes are started that the terminal's signals never reach; their parent tells them.

    Ctrl-C and the end of a terminal are sent to a whole group of processes. A child inherits the blocked signals, also
    for the seconds before it can handle any. So does the process in which Python keeps account of semaphores, which
    would end at SIGHUP and leave its errors behind.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_TERMINAL)
    try:
        _start_accountant()
        signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_TERMINAL)  # which that may have undone
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker() -> None:
    """In a worker process, once: it stops when its parent says so with SIGTERM, and ends when its parent does."""
    for number in _OF_THE_TERMINAL:  # where they could not be blocked
        signal.signal(number, signal.SIG_IGN)
    _install()
    _State.is_idle_worker = True
    parent = multiprocessing.parent_process()
    if parent is not None:

        def wait() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def job_of_worker() -> Iterator[None]:
    """Within it a worker is asked to stop; without a job it is ended at once. An interrupted job ends its process."""
    _State.is_idle_worker = False
    try:
        yield
    except Interrupted as error:
        os._exit(error.exit_code)
    finally:
        _State.is_idle_worker = True
