"""`--overwrite`: what of a folder a run wrote, and how a new run takes its place without a moment without either.

The files of the old run are moved aside, into `.previous`, its configuration first. A folder without a configuration
of its own beside one in `.previous` is therefore an interrupted replacement, which is undone. The old run is deleted
when the new one has something to lose.
"""

import shutil
import warnings
from pathlib import Path

from forgetless.errors import InputError
from forgetless.runs.files import leftovers, sync_folder
from forgetless.runs.lock import LOCK, OWNER
from forgetless.runs.names import (
    CHECKPOINT,
    CHECKPOINT_BEFORE,
    COMPARE,
    CONFIG,
    ENVIRONMENT,
    EVALUATION,
    INTERFERENCE,
    INTERFERENCE_PICTURE,
    METRICS,
    REPORT,
    SCORES,
    SEARCH,
    TENSORBOARD,
    read_header,
)

PREVIOUS = ".previous"
"""Where the run lies that is being replaced."""

_FILES = (
    CONFIG, ENVIRONMENT, METRICS, CHECKPOINT, CHECKPOINT_BEFORE, "trained-seed*-*.pt", INTERFERENCE,
    INTERFERENCE_PICTURE, EVALUATION, REPORT, f"{SCORES}/{'[0-9a-f]' * 64}.json",
    f"{TENSORBOARD}/seed*-*/events.out.tfevents.*",
)  # fmt: skip
_NAMED_AT_MOST = 5


def expect_replaceable(path: Path) -> None:
    """Refuse to replace anything but a run, and any folder that is more than a run's.

    Args:
        path: What `--output` names, and exists.

    Raises:
        InputError: If it is a link, the working folder or the home folder or above one of them, or no run.
    """
    advice = "Choose another folder."
    if path.is_symlink():
        raise InputError(f"Expected a run folder to overwrite, but {path} is a link to {path.readlink()}. {advice}")
    resolved = path.resolve()
    for name, folder in (("working", Path.cwd()), ("home", Path.home())):
        if resolved == folder or resolved in folder.parents:
            where = f"the {name} folder" if resolved == folder else f"above the {name} folder"
            raise InputError(f"Expected a run folder to overwrite, but {path} is {where}. {advice}")
    try:
        read_header(path)
    except InputError as error:
        raise InputError(f"Expected a run folder to overwrite, but {path} holds no run: {error} {advice}") from error


def own_files(path: Path) -> list[Path]:
    """The files of a folder that its run wrote, its configuration first; never what a link leads to.

    Args:
        path: A run folder.
    """
    found = dict.fromkeys(file for pattern in _FILES for file in sorted(path.glob(pattern)) if _is_own(path, file))
    for config in _runs_below(path):
        found |= dict.fromkeys(own_files(config.parent))
        found |= dict.fromkeys(config.parent / name for name in (LOCK, OWNER) if (config.parent / name).exists())
    return list(found)


def _runs_below(path: Path) -> list[Path]:
    """The configurations of the runs that a run is made of: a comparison's searches, or the pieces of another's."""
    if not (path / CONFIG).is_file():
        return []
    experiment = read_header(path).experiment
    pattern, kind = ("*/seed-*", SEARCH) if experiment == COMPARE else ("pieces/*", experiment)
    found = [config for config in sorted(path.glob(f"{pattern}/{CONFIG}")) if _is_own(path, config)]
    return [config for config in found if read_header(config.parent).experiment == kind]


def _is_own(path: Path, file: Path) -> bool:
    """Whether it is a regular file that is reached through no link below the folder."""
    links = [part for part in (file, *file.parents) if part.is_symlink() and part.is_relative_to(path) and part != path]
    return file.is_file() and not links


def set_aside(path: Path) -> None:
    """Move the files of a folder's run aside, and say what else stays there.

    Args:
        path: A run folder, whose lock this process has.
    """
    aside, own = path / PREVIOUS, own_files(path)
    if aside.exists():
        if has_progress(path):
            shutil.rmtree(aside)
        else:  # what is to be kept is the run that this one was to replace
            for file in own:
                file.unlink()
            _remove_empty(own, path)
            own = []
    if own:
        aside.mkdir()
        for file in own:
            target = aside / file.relative_to(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
        sync_folder(path)
        _remove_empty(own, path)
    others = sorted(file for file in path.rglob("*") if file.is_file() and not _is_bookkeeping(path, file))
    if others:
        named = ", ".join(str(file.relative_to(path)) for file in others[:_NAMED_AT_MOST])
        more = f" and {len(others) - _NAMED_AT_MOST} more" if len(others) > _NAMED_AT_MOST else ""
        warnings.warn(f"{path} keeps what no run wrote: {named}{more}.", stacklevel=3)


def _is_bookkeeping(path: Path, file: Path) -> bool:
    return file.relative_to(path).parts[0] in {PREVIOUS, LOCK, OWNER} or file in leftovers(path)


def _remove_empty(files: list[Path], path: Path) -> None:
    """Remove the folders below `path` that held files of a run and hold nothing now."""
    folders = {folder for file in files for folder in file.parents if folder.is_relative_to(path) and folder != path}
    for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
        if not any(folder.iterdir()):
            folder.rmdir()


def put_back(path: Path) -> bool:
    """Undo an interrupted replacement: the old run's files return to their places, its configuration last.

    Args:
        path: Any folder.

    Returns:
        Whether there was one.
    """
    aside = path / PREVIOUS
    if not (aside / CONFIG).is_file() or (path / CONFIG).exists():
        return False
    files = sorted((file for file in aside.rglob("*") if file.is_file()), key=lambda file: file == aside / CONFIG)
    for file in files:
        target = path / file.relative_to(aside)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
    shutil.rmtree(aside)
    sync_folder(path)
    return True


def has_progress(path: Path) -> bool:
    """Whether a run has anything to lose: a record or a checkpoint, of its own or, in a comparison, of a search.

    Args:
        path: A run folder.
    """
    places = [path, *(config.parent for config in _runs_below(path))]
    return any(
        (place / CHECKPOINT).exists() or ((place / METRICS).exists() and (place / METRICS).stat().st_size > 0)
        for place in places
    )


def drop_previous(path: Path) -> None:
    """Delete the run that was replaced, once the new one has something to lose.

    Args:
        path: A run folder, whose lock this process has.
    """
    if (path / PREVIOUS).is_dir() and has_progress(path):
        shutil.rmtree(path / PREVIOUS)
