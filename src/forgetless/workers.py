"""Independent jobs over processes of this machine, or over a cluster through Ray: the same code, the same results.

A job, such as a training, that fails is made again; one that fails again is reported, and the others go on. A process
that dies takes its pool with it, and with it those that ran beside: they are made again one at a time, so that the one
to blame is known.
"""

import concurrent.futures
import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from forgetless import interruption, plugins
from forgetless.errors import InputError


class Job(Protocol):
    """Something to do, which another process can be told."""

    @property
    def key(self) -> str:
        """Different for different jobs."""


J = TypeVar("J", bound=Job)
R = TypeVar("R")
Runner = Callable[[Any], Any]

LOCAL = "local"
"""The cluster that is this machine: a Ray that is started here."""

_SECONDS_TO_ANSWER = 10.0
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_TO_STORE = interruption.GRACE_SECONDS + 0.3


@dataclass(frozen=True)
class Failure(Generic[J]):
    """A job that could not be done.

    Attributes:
        job: Which.
        reason: Of the last try.
    """

    job: J
    reason: str


class _Pool(Protocol):
    size: int

    def submit(self, job: Any) -> "Future[Any]": ...

    def restart(self) -> None: ...


def fan_out(
    jobs: Sequence[J],
    runner: Callable[[J], R],
    done: Callable[[J, R], None],
    *,
    workers: int | None = None,
    cluster: str | None = None,
    retries: int = 1,
) -> list[Failure[J]]:
    """Do all jobs.

    Args:
        jobs: What to do, each with a key of its own.
        runner: Does one; it must be importable in another process.
        done: Called in this process with each job that is done and what the runner returned.
        workers: Processes, or tasks at a time on a cluster; as many as there are cores if None. One runs in this
            process.
        cluster: The address of a Ray cluster, `local` to start one here, or None for processes.
        retries: How often a failed job is tried again.

    Returns:
        Those that failed, with the reason.

    Raises:
        InputError: If the runner raises one, which ends everything; or if the cluster does not answer within 10 s, or
            Ray is not installed.
    """
    if not jobs:
        return []
    with _pool(workers or os.cpu_count() or 1, cluster, runner) as pool:
        return _fan_out(jobs, pool, retries, done)


def _fan_out(jobs: Sequence[J], pool: _Pool, retries: int, done: Callable[[J, Any], None]) -> list[Failure[J]]:
    """All jobs, at most as many at a time as the pool is large; suspects of a dead process one at a time."""
    waiting, suspects = list(reversed(jobs)), list[J]()
    failed: dict[str, int] = {}
    failures: list[Failure[J]] = []
    running: dict[Future[Any], J] = {}

    def again(job: J, error: BaseException) -> None:
        failed[job.key] = failed.get(job.key, 0) + 1
        if failed[job.key] > retries:
            failures.append(Failure(job, f"{type(error).__name__}: {error}"))
        else:
            suspects.append(job)

    def submit(queue: list[J]) -> bool:
        """Start the last of a queue; False if the pool broke before it could."""
        try:
            running[pool.submit(queue[-1])] = queue[-1]
        except concurrent.futures.BrokenExecutor:
            return False
        queue.pop()
        return True

    while waiting or suspects or running:
        is_whole = True
        while is_whole and waiting and len(running) < pool.size:
            is_whole = submit(waiting)
        if is_whole and suspects and not waiting and not running:
            is_whole = submit(suspects)
        if not is_whole and not running:
            pool.restart()
            continue
        finished, _ = concurrent.futures.wait(running, _SECONDS_BETWEEN_LOOKS, concurrent.futures.FIRST_COMPLETED)
        interruption.stop_if_asked()
        died, was_alone = False, len(running) == 1
        for future in finished:
            job = running.pop(future)
            error = future.exception()
            if error is None:
                done(job, future.result())
            elif isinstance(error, InputError):
                raise error
            elif isinstance(error, concurrent.futures.BrokenExecutor):
                died = True
                if was_alone:
                    again(job, error)
                else:  # it may have run beside the one to blame
                    suspects.append(job)
            else:
                again(job, error)
        if died:
            suspects += running.values()
            running.clear()
            pool.restart()
    return failures


@contextlib.contextmanager
def _pool(workers: int, cluster: str | None, runner: Runner) -> Iterator[_Pool]:
    if cluster is not None:
        with _ray_pool(workers, cluster, runner) as on_ray:
            yield on_ray
    elif workers == 1:
        yield _Here(runner)
    else:
        here = _Processes(workers, runner)
        try:
            yield here
        finally:
            here.close()


class _Here:
    """This process, one job at a time."""

    size = 1

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def submit(self, job: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(self._runner(job))
        except Exception as error:
            future.set_exception(error)
        return future

    def restart(self) -> None:
        """Nothing to do."""


class _Recording(multiprocessing.context.SpawnContext):
    """Starts processes afresh, and knows which it started: the executor forgets them when it is shut down."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[multiprocessing.Process] = []

    def Process(self, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]  # noqa: N802
        """As the executor calls it."""
        process = super().Process(*arguments, **options)
        self.processes.append(process)  # type: ignore[arg-type]
        return process


class _Processes:
    """Processes of this machine, each started afresh."""

    def __init__(self, size: int, runner: Runner) -> None:
        self.size, self._runner = size, runner
        self._start()

    def _start(self) -> None:
        self._context = _Recording()
        with interruption.starting_children():
            self._executor = ProcessPoolExecutor(
                self.size, mp_context=self._context, initializer=interruption.begin_worker
            )

    def submit(self, job: Any) -> "Future[Any]":
        with interruption.starting_children():
            return self._executor.submit(_run_job, self._runner, _Packed.of(job))

    def restart(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        """End all processes: those at work may store what they have first."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        processes = [process for process in self._context.processes if process.pid is not None]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + _SECONDS_TO_STORE
        try:
            for process in processes:
                process.join(max(0.0, deadline - time.monotonic()))
        finally:
            for process in processes:
                process.kill()
                process.join()


def _run_job(runner: Runner, job: "_Packed") -> Any:
    with interruption.job_of_worker():
        return runner(job.unpacked())


@dataclass(frozen=True)
class _Packed:
    """A job on its way to another process, which has to import plugins before it can read the job.

    Attributes:
        plugins: Files.
        content: The job, pickled.
    """

    plugins: tuple[str, ...]
    content: bytes

    @classmethod
    def of(cls, job: Any) -> "_Packed":
        """Pack a job."""
        return cls(plugins.loaded(), pickle.dumps(job))

    def unpacked(self) -> Any:
        """The job."""
        plugins.load_files(self.plugins)
        return pickle.loads(self.content)


def _unpacking(runner: Runner) -> Callable[[_Packed], Any]:
    def run(job: _Packed) -> Any:
        return runner(job.unpacked())

    return run


# ---- Ray ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _ray_pool(workers: int, cluster: str, runner: Runner) -> Iterator[_Pool]:
    try:
        import ray
    except ImportError as error:
        raise InputError("Expected Ray for --cluster, but it is not installed. Install the extra `ray`.") from error
    if cluster != LOCAL:
        _expect_answer(cluster)
    with _own_handlers():
        if cluster == LOCAL:
            with interruption.starting_children():
                ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        else:
            try:
                ray.init(address=cluster, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise _no_answer(cluster, reason) from error
    try:
        yield _OnRay(workers, ray.remote(num_cpus=1, max_retries=0)(_unpacking(runner)))
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _own_handlers() -> Iterator[None]:
    """At its end signals are handled as before: Ray takes SIGTERM for itself."""
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if is_main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _expect_answer(cluster: str) -> None:
    """Refuse an address that nobody listens on, which Ray itself would wait for."""
    host, _, port = cluster.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"Expected HOST:PORT, ray://HOST:PORT or {LOCAL} as the cluster, but got {cluster!r}.")
    try:
        with socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER):
            pass
    except (OSError, OverflowError) as error:
        raise _no_answer(cluster, getattr(error, "strerror", None) or str(error)) from error


def _no_answer(cluster: str, reason: str) -> InputError:
    return InputError(
        f"Expected a Ray cluster that answers within {_SECONDS_TO_ANSWER:.0f} s at {cluster}, but got: {reason}. Start "
        "one with `ray start --head`, or leave out --cluster."
    )


class _OnRay:
    """Tasks of a Ray cluster."""

    def __init__(self, size: int, remote: Any) -> None:
        self.size, self._remote = size, remote

    def submit(self, job: Any) -> "Future[Any]":
        future: Future[Any] = self._remote.remote(_Packed.of(job)).future()
        return future

    def restart(self) -> None:
        """Nothing to do: Ray replaces a process that died."""
