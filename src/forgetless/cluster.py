"""Independent jobs as tasks of a Ray cluster: a pool of `forgetless.workers.fan_out`."""

import contextlib
import importlib.util
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

from forgetless import interruption
from forgetless.errors import InputError

LOCAL = "local"
"""The cluster that is this machine: a Ray that is started here."""

Tell = Callable[[Mapping[str, Any]], bool | None]
"""Sends named things to the process that began a job, in the place of earlier ones of the same name. It returns whether
the job is asked to stop, or None if nothing could be sent."""

_SECONDS_TO_ANSWER = 10.0
_SECONDS_BETWEEN_NEWS = 0.5
_SECONDS_TO_STOP = interruption.GRACE_SECONDS
"""A job hears that it is asked to stop, stores what it has, and sends it, while this process has 4.5 s to end."""


@contextlib.contextmanager
def ray_pool(
    workers: int, cluster: str, pack: Callable[[Any], Any], run: Callable[..., Any], *, device: str, tells: bool
) -> Iterator["OnRay"]:
    """A pool of tasks of a cluster, which lasts as long as the block.

    Args:
        workers: Tasks at a time.
        cluster: Its address, or `local` to start one here.
        pack: Makes of a job what is sent.
        run: Does what was sent; where jobs tell how far they are, with a `Tell` as its second argument.
        device: Of the jobs; where it is `cuda`, each has a GPU of its own, and sees no other.
        tells: Whether they do.

    Yields:
        The pool.

    Raises:
        InputError: If Ray is not installed, the cluster does not answer within 10 s, or it does not have the device.
    """
    expect_cluster(cluster)
    num_gpus = gpus_of_a_job(device)
    import ray

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
        if num_gpus and not ray.cluster_resources().get("GPU"):  # type: ignore[no-untyped-call]
            raise InputError(
                f"Expected a cluster with GPUs for the device {device}, but {cluster} has none. Start Ray with "
                "--num-gpus, or choose the device cpu."
            )
        # A machine that is lost takes the mailbox with it; a new one is empty, and what comes next fills it.
        mailbox = ray.remote(num_cpus=0, max_restarts=-1)(_Mailbox).remote() if tells else None
        remote = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=0)(_task(run))
        yield OnRay(workers, remote, pack, mailbox)
    finally:
        ray.shutdown()


def gpus_of_a_job(device: str) -> int:
    """How many GPUs a job on a device is given.

    Args:
        device: Such as `cpu` or `cuda`.

    Raises:
        InputError: If it names one of several GPUs, of which a job sees its own only.

    >>> gpus_of_a_job("cpu"), gpus_of_a_job("cuda")
    (0, 1)
    """
    if device.startswith("cuda:"):
        raise InputError(f"Expected the device cuda without a number on a cluster, which chooses it, but got {device}.")
    return int(device == "cuda")


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


def expect_cluster(cluster: str) -> None:
    """Refuse a cluster that is not there; an address that nobody listens on is what Ray itself would wait for.

    Args:
        cluster: Its address, or `local`.

    Raises:
        InputError: If Ray is not installed, or nobody answers within 10 s.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError("Expected Ray for --cluster, but it is not installed. Install the extra `ray`.")
    if cluster == LOCAL:
        return
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


class OnRay:
    """Tasks of a Ray cluster.

    Args:
        size: How many at a time.
        remote: Ray's function that does what `pack` made of a job.
        pack: Makes of a job what is sent.
        mailbox: Where jobs tell how far they are; None if they do not.
    """

    def __init__(self, size: int, remote: Any, pack: Callable[[Any], Any], mailbox: Any) -> None:
        self.size, self._remote, self._pack, self._mailbox = size, remote, pack, mailbox
        self._asked_at, self._answer = 0.0, None
        self._jobs: list[Any] = []

    def submit(self, job: Any) -> "Future[Any]":
        """Begin a job."""
        told = () if self._mailbox is None else (self._mailbox, job.key)
        reference = self._remote.remote(self._pack(job), *told)
        self._jobs.append(reference)
        future: Future[Any] = reference.future()
        return future

    def restart(self) -> None:
        """Nothing to do: Ray replaces a process that died."""

    def news(self) -> Mapping[str, Any]:
        """What jobs told since the last time, by key, then by name; asked for now and then, and not waited for."""
        import ray

        if self._answer is None and time.monotonic() - self._asked_at > _SECONDS_BETWEEN_NEWS:
            self._asked_at, self._answer = time.monotonic(), self._mailbox.take.remote()
        if self._answer is None or not ray.wait([self._answer], timeout=0)[0]:
            return {}
        answer, self._answer = self._answer, None
        return _received(answer, 0)

    def last_news(self) -> Mapping[str, Any]:
        """Ask all jobs to stop, wait for them a little, and return what they told, as `news`."""
        import ray

        deadline = time.monotonic() + _SECONDS_TO_STOP
        found: dict[str, Any] = dict(_received(self._answer, 0.1)) if self._answer is not None else {}
        self._mailbox.stop.remote()
        ray.wait(self._jobs, num_returns=len(self._jobs), timeout=deadline - time.monotonic())
        for key, news in _received(self._mailbox.take.remote(), 0.5).items():
            found[key] = {**found.get(key, {}), **news}
        return found


def _received(answer: Any, seconds: float) -> Mapping[str, Any]:
    """What the mailbox answered; nothing where it did not."""
    import ray

    try:
        found: Mapping[str, Any] = ray.get(answer, timeout=seconds)
    except ray.exceptions.RayError:
        return {}
    return found


# ---- on other machines -------------------------------------------------------------------------------------------


class _Mailbox:
    """An actor that keeps what jobs tell until the process that began them takes it: the newest of each name."""

    def __init__(self) -> None:
        self._news: dict[str, dict[str, Any]] = {}
        self._is_over = False

    def put(self, key: str, news: Mapping[str, Any]) -> bool:
        """Keep news of a job; whether it is asked to stop."""
        if news:
            self._news.setdefault(key, {}).update(news)
        return self._is_over

    def take(self) -> dict[str, dict[str, Any]]:
        """Everything that came since the last time."""
        found, self._news = self._news, {}
        return found

    def stop(self) -> None:
        """Ask all jobs to stop."""
        self._is_over = True


def _task(run: Callable[..., Any]) -> Callable[..., Any]:
    def task(packed: Any, mailbox: Any = None, key: str = "") -> Any:
        if mailbox is None:
            return run(packed)

        def tell(news: Mapping[str, Any]) -> bool | None:
            import ray

            try:
                return bool(ray.get(mailbox.put.remote(key, news), timeout=_SECONDS_TO_ANSWER))
            except ray.exceptions.RayError:
                return None

        return run(packed, tell)

    return task
