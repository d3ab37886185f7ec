"""A piece of a run on another machine, which shares no folder with this one: it takes along what its folder holds.

A piece is a `Piece`, or the searches of one strategy and seed of a comparison; what it is makes no difference here.

There it goes on in a temporary folder, and whatever changes in that is sent back into the folder here, as is what it
has stored when it is asked to stop. So a run that was interrupted goes on as one over processes does, here or on a
cluster; what a sudden end costs is what has not been sent: half a second beside what no checkpoint holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from forgetless import interruption
from forgetless.experiments.pieces import beside
from forgetless.workers import fan_out

if TYPE_CHECKING:
    from forgetless.cluster import Tell


_SECONDS_BETWEEN_LOOKS = 0.5
_TRIES_TO_READ = 5

Files = Mapping[str, bytes]
P = TypeVar("P", bound="InFolder")
_Stamps = dict[str, tuple[int, int, int]]


class InFolder(Protocol):
    """What is made in a folder of its own, such as a `Piece`: a dataclass."""

    @property
    def path(self) -> Path:
        """Of the folder."""

    @property
    def key(self) -> str:
        """Its name, which is a path below another folder."""


@dataclass(frozen=True)
class CarriedPiece:
    """A piece that is made elsewhere: what is sent is an `ArrivedPiece`, with the files of that moment.

    Attributes:
        piece: As its folder here has it.
        make: Makes what its folder lacks; importable.
    """

    piece: InFolder
    make: Callable[[Any], None]

    @property
    def key(self) -> str:
        """Its name."""
        return self.piece.key

    def __reduce__(self) -> tuple[type[ArrivedPiece], tuple[InFolder, Files, Callable[[Any], None]]]:
        return ArrivedPiece, (self.piece, read_files(self.piece.path), self.make)


@dataclass(frozen=True)
class ArrivedPiece:
    """A piece where it is made.

    Attributes:
        piece: With the path of its folder on the machine that it comes from.
        files: Of that folder, by name.
        make: Makes what its folder lacks.
    """

    piece: InFolder
    files: Files
    make: Callable[[Any], None]


def run_arrived(arrived: ArrivedPiece, tell: Tell) -> Files:
    """Make what a piece lacks, in a temporary folder.

    Args:
        arrived: Which.
        tell: Sends files back, and hears whether to stop.

    Returns:
        All files of its folder.

    Raises:
        RuntimeError: If it cannot be made, or is asked to stop; then what it has stored is sent.
    """
    with tempfile.TemporaryDirectory(prefix="forgetless-") as place:
        path = Path(place) / arrived.piece.key
        write_files(path, arrived.files)
        try:
            with interruption.handled(), _sending(path, tell):
                arrived.make(dataclasses.replace(arrived.piece, path=path))  # type: ignore[type-var]
        except interruption.Interrupted as error:
            tell(read_files(path))
            raise RuntimeError("it was asked to stop") from error
        return read_files(path)


@contextlib.contextmanager
def _sending(path: Path, tell: Tell) -> Iterator[None]:
    """While it lasts, another thread sends files that changed, and asks this process to stop if it hears so."""

    def send(ended: threading.Event) -> None:
        sent = _stamps(path)
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            stamps = _stamps(path)
            changed = _read_unchanging(path, stamps, [name for name in stamps if stamps[name] != sent.get(name)])
            is_over = tell(changed or {})
            if changed is not None and is_over is not None:
                sent = stamps
            if is_over and not ended.is_set():
                signal.raise_signal(signal.SIGTERM)  # handled in the main thread, as a request
                return

    with beside(send):
        yield


# ---- here --------------------------------------------------------------------------------------------------------


def make_on_cluster(
    pieces: Sequence[P],
    make: Callable[[P], None],
    gather: Callable[[P, None], None],
    cluster: str,
    workers: int | None,
    device: str,
) -> dict[str, str]:
    """Make pieces on a cluster. Their folders here hold what was sent back so far.

    Args:
        pieces: Which.
        make: Makes what the folder of one lacks; importable.
        gather: Called with each whose folder is complete.
        cluster: As for `fan_out`.
        workers: How many at a time; as many as this machine has cores if None.
        device: Where they are made.

    Returns:
        Name → reason of each that failed twice.

    Raises:
        InputError: If Ray is not installed, or the cluster does not answer; or if a folder cannot be written.
    """
    places = {piece.key: piece.path for piece in pieces}

    def arrived(carried: CarriedPiece, files: Files) -> None:
        write_files(carried.piece.path, files)
        gather(carried.piece, None)  # type: ignore[arg-type]

    failures = fan_out(
        [CarriedPiece(piece, make) for piece in pieces],
        run_arrived,
        arrived,
        workers=workers,
        cluster=cluster,
        device=device,
        on_news=lambda key, files: write_files(places[key], files),
    )
    return {failure.job.key: failure.reason for failure in failures}


# ---- files -------------------------------------------------------------------------------------------------------


def read_files(path: Path) -> Files:
    """The files of a run folder, whose writer may be at work: as they were together at one moment.

    Args:
        path: The folder; there are none if it does not exist.
    """
    for _ in range(_TRIES_TO_READ):
        stamps = _stamps(path)
        found = _read_unchanging(path, stamps, list(stamps))
        if found is not None:
            return found
    raise RuntimeError(f"the files of {path} did not stay as they are for long enough to read them")


def _read_unchanging(path: Path, stamps: _Stamps, names: list[str]) -> dict[str, bytes] | None:
    """The content of some files; None if anything in the folder changed meanwhile.

    Records and checkpoint that do not belong together would be a state that no kill can leave.
    """
    try:
        found = {name: (path / name).read_bytes() for name in names}
    except OSError:
        return None
    return found if _stamps(path) == stamps else None


def _stamps(path: Path) -> _Stamps:
    """Of each file, what is another after it was written or replaced."""
    found = {}
    with contextlib.suppress(OSError):  # the folder is not there yet
        for file in path.iterdir():
            with contextlib.suppress(OSError):  # replaced by another at this moment
                if file.is_file() and not file.name.startswith("."):  # no lock, and nothing half written
                    known = file.stat()
                    found[file.name] = (known.st_ino, known.st_size, known.st_mtime_ns)
    return found


def write_files(path: Path, files: Mapping[str, Any]) -> None:
    """Write files into a run folder, so that what is there after a kill in between can be gone on from.

    Args:
        path: The folder; made if there is a file to write.
        files: Content by name.

    Raises:
        InputError: If one cannot be written.
    """
    from forgetless.runs import CHECKPOINT, CHECKPOINT_BEFORE, CONFIG, METRICS, writing_to
    from forgetless.runs.files import replacing

    # A folder with a configuration is a run; records may be ahead of a checkpoint, but not missing beside it.
    order = [METRICS, CHECKPOINT_BEFORE, CHECKPOINT]
    for name in sorted(files, key=lambda name: (name != CONFIG, order.index(name) if name in order else -1)):
        with writing_to(path):
            path.mkdir(parents=True, exist_ok=True)
            with replacing(path / name) as stream:
                stream.write(files[name])
