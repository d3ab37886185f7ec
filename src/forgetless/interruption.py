"""Stopping when a signal asks for it: what can be stored is stored, every process ends, and nothing is left behind.

The first SIGINT, SIGTERM or SIGHUP is a request. Loops ask `is_asked()` where their state is whole, store it, and call
`stop_if_asked()`. Where nothing asks within the grace, `Interrupted` is raised wherever the program is. Where even that
does not end it, as in a long call of a library, it is ended with all its children. A second signal does that at once.
"""

import _thread
import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import NoReturn

GRACE_SECONDS = 2.0
"""How long a loop has to store what it has."""
LIMIT_SECONDS = 4.5
"""When a process that was asked to stop is ended, wherever it is."""

_SECONDS_OF_AN_IMPORT = 0.05  # until it is looked again whether a module is still being imported

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


_Handler = signal.Handlers | Callable[..., object] | int | None

_SECONDS_OF_A_HANGUP = 0.3
_OF_TORCHRUN = "TORCHELASTIC_RUN_ID"
_SECONDS_OF_LAST_WORDS = 0.5

_ending = threading.Lock()


class _State:
    """What was asked of this process, and how it answers."""

    is_handled = False
    is_idle_worker = False
    is_ending = False
    """Whether `handled` is over; a signal changes nothing any more."""
    signal_number: int | None = None
    asked_at = 0.0
    last_words: Callable[[], object] | None = None
    speaker: threading.Event | None = None
    """Of last words that are being said or were: set when they are."""
    stop_watching: Callable[[], None] | None = None
    """Of a worker."""
    ender: int | None = None
    """The thread that ends this process."""
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
        stop(_State.signal_number)


def signal_number() -> int:
    """The signal that has asked this process to stop; 0 if none has."""
    return _State.signal_number or 0


def stop(number: int) -> NoReturn:
    """Stop because of a signal, which another process may have got.

    Args:
        number: Of the signal.

    Raises:
        Interrupted: Always.
    """
    _alarm(0)
    raise Interrupted(number)


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
    stop_watching, before = _watch(), dict[int, _Handler]()
    try:
        _install(before)
        yield
    finally:
        _State.is_ending = True
        _alarm(0)
        for number, handler in before.items():
            signal.signal(number, _leave if to_the_end else handler)
        stop_watching()
        _State.is_handled, _State.signal_number, _State.last_words, _State.speaker = False, None, None, None
        _State.is_ending, _State.children = False, frozenset()


def _install(before: dict[int, "_Handler"]) -> None:
    """Handle signals from now on.

    Args:
        before: What handled them so far goes there.
    """
    _State.is_handled = True
    wanted: dict[int, Callable[[int, FrameType | None], None]] = {
        number: _ask for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN
    }
    if hasattr(signal, "SIGALRM"):
        wanted[signal.SIGALRM] = _time_is_up
    for number, handler in wanted.items():
        before[number] = signal.signal(number, handler)


def _watch() -> Callable[[], None]:
    """Start the thread that ends this process where its main thread cannot; return what stops it.

    Python calls handlers between two instructions, and so not during a long call of a library; of two signals during
    one such call it tells of one. The thread hears each at once. It ends the process at the second, or when time is up.
    """
    reader, writer = socket.socketpair()  # a pipe would not do on Windows
    writer.setblocking(False)
    before, owner = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False), os.getpid()

    def watch() -> None:
        first, asked_at = 0, None
        while True:
            reader.settimeout(None if asked_at is None else max(0.01, asked_at + LIMIT_SECONDS - time.monotonic()))
            try:
                received = reader.recv(64)
            except TimeoutError:
                end_at_once(first)
                return
            if not received:
                return
            for number in received:
                if number not in _SIGNALS:
                    continue
                if _State.is_idle_worker or (asked_at is not None and not _is_the_same(number, asked_at)):
                    end_at_once(number)
                if asked_at is None:
                    first, asked_at = number, time.monotonic()

    def stop() -> None:
        if os.getpid() != owner:
            return  # a fork, which has no such thread
        signal.set_wakeup_fd(before)
        writer.shutdown(socket.SHUT_WR)  # which ends the thread, whoever else has a copy
        thread.join()
        writer.close()
        reader.close()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return stop


def _leave_watch() -> None:
    if _State.is_handled:  # the parent would take this process's signals for its own
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_watch)


def _is_the_same(number: int, asked_at: float) -> bool:
    """Whether a second signal is the first one over again.

    Shell and kernel both tell that a terminal is closed; terminal and torchrun both tell of Ctrl-C.
    """
    is_hangup = number == getattr(signal, "SIGHUP", None) and time.monotonic() - asked_at < _SECONDS_OF_A_HANGUP
    return is_hangup or _OF_TORCHRUN in os.environ


def _ask(number: int, _frame: FrameType | None) -> None:
    if _State.is_ending or _State.speaker is not None:  # what speaks ends then
        return
    if _State.signal_number is not None and _is_the_same(number, _State.asked_at):
        return
    if _State.signal_number is not None or _State.is_idle_worker:
        end_at_once(number)
        return
    _State.signal_number, _State.asked_at = number, time.monotonic()
    has_alarm = _alarm(GRACE_SECONDS)
    with contextlib.suppress(Exception):
        _State.children = frozenset(_descendants())
    if not has_alarm:
        stop_if_asked()


def _alarm(seconds: float) -> bool:
    """Call `stop_if_asked` in so many seconds, or not if 0; False where there are no alarms, as on Windows."""
    if not hasattr(signal, "setitimer"):
        return False
    signal.setitimer(signal.ITIMER_REAL, seconds)
    return True


def _time_is_up(_number: int, frame: FrameType | None) -> None:
    if _State.is_ending:
        return
    if _is_importing(frame):
        # PyTorch's modules run Python from C++, where an exception would abort the process.
        _alarm(_SECONDS_OF_AN_IMPORT)
    else:
        stop_if_asked()


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _leave(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


@contextlib.contextmanager
def last_words(say: Callable[[], object]) -> Iterator[None]:
    """Within it an interruption, also one that ends the process at once, ends with such words as how to go on.

    They are said once. A signal meanwhile waits for them, half a second at most.

    Args:
        say: Prints them.
    """
    before, _State.last_words = _State.last_words, say
    try:
        yield
    except KeyboardInterrupt:
        _State.speaker = threading.Event()
        try:
            say()
        finally:
            _State.speaker.set()
        raise
    finally:
        _State.last_words = before


def end_at_once(number: int) -> None:
    """Kill every process that this one or its children started and end this one, without any cleaning up.

    Args:
        number: Of the signal, for the exit code.
    """
    if not _ending.acquire(blocking=False):
        if _State.ender == threading.get_ident():
            return  # a signal handler within this function, which goes on when it returns
        time.sleep(_SECONDS_OF_LAST_WORDS + 1)
        os._exit(128 + number)
    _State.ender = threading.get_ident()
    with contextlib.suppress(Exception):
        for child in multiprocessing.active_children():
            with contextlib.suppress(Exception):
                child.kill()
    with contextlib.suppress(Exception):
        for pid, begun in [*_State.children, *_descendants()]:
            with contextlib.suppress(OSError):
                if _parent_and_begin(pid)[1] == begun:  # not another process with the number of one that is gone
                    os.kill(pid, signal.SIGKILL)
    said = threading.Event()

    def say() -> None:
        with contextlib.suppress(Exception):
            if _State.last_words is not None:
                _State.last_words()
            sys.stderr.flush()
        said.set()

    if _State.speaker is not None:
        _State.speaker.wait(_SECONDS_OF_LAST_WORDS)
        os._exit(128 + number)
    with contextlib.suppress(Exception):
        # In a thread, because a pipe or a terminal may take nothing; a low one, because a handler may have interrupted
        # the start of another, which has a lock.
        _thread.start_new_thread(say, ())
        said.wait(_SECONDS_OF_LAST_WORDS)
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
    after_name = (Path("/proc") / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
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
    _State.stop_watching = _watch()  # kept, as it holds the socket
    _install({})
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
