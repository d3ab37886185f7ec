"""A run spread over processes or a cluster: each independent piece in a run folder of its own, then put together.

A piece is what can be trained without the rest: the arms of one seed that do not follow one another. It goes on after
an interruption as any run does. When it is finished its records take their places in the run's own file, in the order
in which one process would have made them, and its folder goes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetless import ranks
from forgetless.errors import InputError
from forgetless.experiments.base import RUN_KINDS, RunKind
from forgetless.progress import OnProgress, Progress
from forgetless.records import Record

if TYPE_CHECKING:
    from forgetless.configuration import Configuration
    from forgetless.parts import Resources
    from forgetless.runs import RunFolder

PIECES = "pieces"
"""The folder below a run's that holds those of its pieces."""

_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True)
class Piece:
    """What one process does at a time.

    Attributes:
        path: Of its run folder.
        experiment: Its kind of run.
        config: Its configuration, for one process.
    """

    path: Path
    experiment: str
    config: Configuration

    @property
    def key(self) -> str:
        """Its name."""
        return self.path.name


def wants_pieces(config: Any, path: Path) -> bool:
    """Whether a run is made in pieces: where processes or a cluster are asked for, or were when it was begun.

    Args:
        config: Of the run, with its resources.
        path: Of its folder.
    """
    resources: Resources = config.resources
    return (resources.workers or 1) > 1 or resources.cluster is not None or (path / PIECES).is_dir()


def expect_one_way(kind: type[RunKind[Any, Any]], config: Any, path: Path) -> None:
    """Refuse processes of torchrun for a run that they cannot make together.

    Args:
        kind: Of run.
        config: Of the run, with its resources.
        path: Of its folder, which need not exist.

    Raises:
        InputError: If there are several, and the kind is not for them, or the run is made in pieces.
    """
    if (number := ranks.num_processes()) == 1:
        return
    if not kind.works_in_ranks:
        raise InputError(f"Expected one process for a run of {kind.name}, but got {number}. Leave torchrun out.")
    if wants_pieces(config, path):
        raise InputError(
            f"Expected either processes that train one model, which torchrun starts, or --workers and --cluster, which "
            f"spread seeds and arms, but got both for {path}. Leave out one of them."
        )


def run_in_pieces(
    kind: type[RunKind[Any, Any]],
    config: Any,
    folder: RunFolder,
    *,
    on_progress: OnProgress | None = None,
    on_record: Callable[[Any], None] | None = None,
) -> dict[str, str]:
    """Make what a run folder lacks, each piece in a process, or on a machine of a cluster.

    Args:
        kind: Of run.
        config: Of the folder; it says how many processes, or which cluster.
        folder: Of the run; this process has its lock.
        on_progress: Called about once a second, from another thread.
        on_record: Called with each record when its piece is finished, those that were there first.

    Returns:
        Name → reason of each piece that failed twice. The others are done.

    Raises:
        InputError: If records are damaged; or if Ray is not installed, or the cluster does not answer.
    """
    kept = kind.read(config, folder)
    pieces = [Piece(folder.path / PIECES / name, kind.name, own) for name, own in kind.pieces(config).items()]
    for record in kept if on_record is not None else ():
        on_record(record)  # type: ignore[misc]
    unfinished = []
    for piece in pieces:
        mine = [record for record in kept if kind.belongs(piece.config, record)]
        if len(mine) == kind.num_records(piece.config):
            shutil.rmtree(piece.path, ignore_errors=True)  # of a process that died before it could
            continue
        unfinished.append(piece)
        if not piece.path.exists():
            _give_what_is_made(kind, folder, piece, mine)

    def gather(piece: Piece, _result: None) -> None:
        _gather(kind, config, folder, piece, on_record)

    sizes = {piece.path: kind.num_records(piece.config) for piece in pieces}
    done = sum(size for path, size in sizes.items() if all(path != piece.path for piece in unfinished))
    with followed({piece.path: piece.key for piece in unfinished}, sizes, done, on_progress):
        failed = _make(unfinished, gather, config.resources, kind.device(config))
    with contextlib.suppress(OSError):
        (folder.path / PIECES).rmdir()
    return failed


def _make(
    pieces: Sequence[Piece], gather: Callable[[Piece, None], None], resources: Resources, device: str
) -> dict[str, str]:
    """Make pieces; name → reason of each that failed twice."""
    from forgetless.workers import fan_out

    if resources.cluster is None:
        failures = fan_out(pieces, run_piece, gather, workers=resources.workers or 1)
        return {failure.job.key: failure.reason for failure in failures}
    from forgetless.experiments.carried import make_on_cluster

    return make_on_cluster(pieces, run_piece, gather, resources.cluster, resources.workers, device)


def run_piece(piece: Piece) -> None:
    """Make what a piece lacks. What is wrong with one, such as a damaged file, is not to stop the others.

    Args:
        piece: Which.

    Raises:
        RuntimeError: If it cannot be made.
    """
    from forgetless.runs import CONFIG, RunFolder

    kind = RUN_KINDS[piece.experiment]
    try:
        is_there = (piece.path / CONFIG).is_file()
        folder = RunFolder(piece.path) if is_there else kind.create(piece.path, piece.config)
        with folder.writing(kind.device(piece.config)):
            kind.run(piece.config, folder)
    except InputError as error:
        raise RuntimeError(str(error)) from error


def _give_what_is_made(kind: type[RunKind[Any, Any]], folder: RunFolder, piece: Piece, mine: Sequence[Record]) -> None:
    """Give a piece what the run, made by one process so far, has of it."""
    state = folder.load_checkpoint()
    is_ours = state is not None and kind.is_state_of(piece.config, state)
    if not mine and not is_ours:
        return
    made = kind.create(piece.path, piece.config)
    with made.writing(kind.device(piece.config)):
        made.replace_records([record.to_dict() for record in mine])
        if state is not None and is_ours:
            made.save_checkpoint({**state, "config": piece.config.to_dict()})


def _gather(
    kind: type[RunKind[Any, Any]],
    config: Any,
    folder: RunFolder,
    piece: Piece,
    on_record: Callable[[Any], None] | None,
) -> None:
    """Take the records and final states of a finished piece into the run's folder; its own goes."""
    from forgetless.runs import RunFolder

    made = RunFolder(piece.path)
    new = kind.read(piece.config, made)
    for seed, protection in kind.final_states(piece.config):
        state = made.load_trained(seed, protection)
        if state is not None:
            folder.save_trained(seed, protection, {**state, "config": config.to_dict()})
    others = [record for record in kind.read(config, folder) if not kind.belongs(piece.config, record)]
    folder.replace_records([record.to_dict() for record in kind.ordered(config, [*others, *new])])
    folder.drop_previous()
    shutil.rmtree(piece.path)
    if on_record is not None:
        for record in new:
            on_record(record)


# ---- looking on --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def followed(
    pieces: Mapping[Path, str],
    sizes: Mapping[Path, int],
    done: int,
    on_progress: OnProgress | None,
    *,
    at_last: str = "putting together what was found",
) -> Iterator[None]:
    """While it lasts, another thread reads how far all pieces are, whoever works on them.

    Args:
        pieces: Folder → name, of those to be made.
        sizes: Folder → records, of all.
        done: Records that were there before.
        on_progress: Called about once a second.
        at_last: What is done when none is under way.
    """
    if on_progress is None:
        yield
        return
    seen: dict[Path, int] = {}

    def look(ended: threading.Event) -> None:
        while True:
            on_progress(_progress(pieces, sizes, done, seen, at_last))
            if ended.wait(_SECONDS_BETWEEN_LOOKS):
                return

    with beside(look):
        yield


@contextlib.contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """While it lasts, another thread works.

    Args:
        work: Called with what tells that it is over.
    """
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _progress(
    pieces: Mapping[Path, str], sizes: Mapping[Path, int], done: int, seen: dict[Path, int], at_last: str
) -> Progress:
    """Records over all pieces, and the last of each that is under way, the most recent first."""
    from forgetless.runs import METRICS

    under_way: list[tuple[float, str]] = []
    for path, name in pieces.items():
        try:
            content, written = (path / METRICS).read_bytes(), (path / METRICS).stat().st_mtime
        except OSError:  # not begun; or finished, and put together with the others
            continue
        records = content.splitlines(keepends=True)
        records = [line for line in records if line.endswith(b"\n")]  # what is being written is not whole
        seen[path] = max(seen.get(path, 0), len(records))
        if len(records) < sizes[path]:
            under_way.append((written, f"{name} {_last(records)}".rstrip()))
    first, *others = [text for _, text in sorted(under_way, reverse=True)] or [at_last]
    return Progress(done + sum(seen.values()), sum(sizes.values()), first, "; ".join(others))


def _last(records: Sequence[bytes]) -> str:
    """What the last record is of."""
    with contextlib.suppress(IndexError, ValueError, KeyError):
        record = json.loads(records[-1])
        epoch = f", epoch {record['epoch'] + 1}" if "epoch" in record else ""
        return f"{record['protection']}{epoch}"
    return ""
