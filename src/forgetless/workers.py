"""Independent jobs over processes of this machine, or over a cluster through Ray: the same code, the same results.

A job, such as a training, that fails is made again; one that fails again is reported, and the others go on. A process
that dies takes its pool with it, and with it those that ran beside: they are made again one at a time, so that the one
to blame is known.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
Runner = Callable[..., Any]
OnNews = Callable[[str, Any], None]

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

    def news(self) -> Mapping[str, Any]: ...

    def last_news(self) -> Mapping[str, Any]: ...


def fan_out(
    jobs: Sequence[J],
    runner: Callable[..., R],
    done: Callable[[J, R], None],
    *,
    workers: int | None = None,
    cluster: str | None = None,
    device: str = "cpu",
    retries: int = 1,
    on_news: OnNews | None = None,
) -> list[Failure[J]]:
    """Do all jobs.

    Args:
        jobs: What to do, each with a key of its own.
        runner: Does one; it must be importable in another process.
        done: Called in this process with each job that is done and what the runner returned.
        workers: Processes, or tasks at a time on a cluster; as many as there are cores if None. One runs in this
            process.
        cluster: The address of a Ray cluster, `local` to start one here, or None for processes.
        device: Of the jobs. On a cluster each has a GPU of its own where it is `cuda`.
        retries: How often a failed job is tried again.
        on_news: For jobs on a cluster that tell how far they are: called in this process with the key of a job and what
            it told. The runner then gets a second argument, a `cluster.Tell`.

    Returns:
        Those that failed, with the reason.

    Raises:
        InputError: If the runner raises one, which ends everything; or if the cluster does not answer within 10 s or
            does not have the device, or Ray is not installed.
    """
    if not jobs:
        return []
    tells = on_news is not None
    with _pool(workers or os.cpu_count() or 1, cluster, runner, device, tells=tells) as pool:
        try:
            return _fan_out(jobs, pool, retries, done, on_news)
        except interruption.Interrupted:
            if on_news is not None:
                for key, news in pool.last_news().items():
                    on_news(key, news)
            raise


def _fan_out(
    jobs: Sequence[J],
    pool: _Pool,
    retries: int,
    done: Callable[[J, Any], None],
    on_news: OnNews | None = None,
) -> list[Failure[J]]:
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
        if on_news is not None:
            under_way = {job.key for job in running.values()}
            for key, news in pool.news().items():
                if key in under_way:  # what comes late is of a job that is done, or will be made again
                    on_news(key, news)
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
def _pool(workers: int, cluster: str | None, runner: Runner, device: str, *, tells: bool) -> Iterator[_Pool]:
    if cluster is not None:
        from forgetless.cluster import ray_pool

        with ray_pool(workers, cluster, Packed.of, _unpacking(runner), device=device, tells=tells) as on_ray:
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

    def news(self) -> Mapping[str, Any]:
        """None: a job writes where everybody sees it."""
        return {}

    def last_news(self) -> Mapping[str, Any]:
        """None, as well."""
        return {}


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
            return self._executor.submit(_run_job, self._runner, Packed.of(job))

    def restart(self) -> None:
        self.close()
        self._start()

    def news(self) -> Mapping[str, Any]:
        """None: a job writes where everybody sees it."""
        return {}

    def last_news(self) -> Mapping[str, Any]:
        """None, as well."""
        return {}

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


def _run_job(runner: Runner, job: "Packed") -> Any:
    with interruption.job_of_worker():
        return runner(job.unpacked())


@dataclass(frozen=True)
class Packed:
    """A job on its way to another process, which has to import plugins before it can read the job.

    Attributes:
        plugins: Files.
        content: The job, pickled.
    """

    plugins: tuple[str, ...]
    content: bytes

    @classmethod
    def of(cls, job: Any) -> "Packed":
        """Pack a job."""
        return cls(plugins.loaded(), pickle.dumps(job))

    def unpacked(self) -> Any:
        """The job."""
        plugins.load_files(self.plugins)
        return pickle.loads(self.content)


def _unpacking(runner: Runner) -> Callable[..., Any]:
    def run(job: Packed, *tell: Any) -> Any:
        return runner(job.unpacked(), *tell)

    return run
