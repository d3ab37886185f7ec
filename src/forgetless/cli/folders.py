"""Run folders from arguments: made, gone on in, and read."""

import contextlib
import datetime as dt
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from forgetless.cli.terminal import exit_code_of, last_words, progress_bar, shown, tell, warnings_in_one_line, writable
from forgetless.cluster import expect_cluster
from forgetless.configuration import Configuration
from forgetless.errors import InputError
from forgetless.experiments.base import RUN_KINDS, kind_of, load_config, load_result
from forgetless.experiments.pieces import expect_one_way
from forgetless.records import plain
from forgetless.runs import COMPARE, REPORT, SEARCH, TENSORBOARD, RunFolder
from forgetless.tensorboard import EpochScalars

if TYPE_CHECKING:
    from forgetless.search.result import SearchResult


def start(
    experiment: str,
    config: Configuration,
    output: Path | None,
    *,
    overwrite: bool,
    as_json: bool,
    tensorboard: bool = False,
) -> int:
    """Make a run folder, then do all of the run.

    Args:
        experiment: Which kind of run.
        config: What to do.
        output: The folder; a new one below runs/ if None.
        overwrite: Replace it if it is a run.
        as_json: Print the result as JSON.
        tensorboard: Write scalars, too.

    Returns:
        The exit code.
    """
    kind = RUN_KINDS[experiment]
    stamp = dt.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    path = output or Path("runs") / f"{experiment}-{_short_name(kind.data(config))}-{stamp}"
    expect_one_way(kind, config, path)
    kind.check(config)  # bad input is refused before anything is written
    if (cluster := kind.cluster(config)) is not None:
        expect_cluster(cluster)
    with warnings_in_one_line():
        folder = kind.create(path, config, overwrite=overwrite)
    return go_on(folder, as_json=as_json, tensorboard=tensorboard)


def _short_name(data: str) -> str:
    """What data is called in the name of a folder: without what cannot be printed, and not too long for one."""
    name = "".join(character if character.isprintable() else "_" for character in Path(data).stem)
    return name.encode()[:100].decode(errors="ignore")  # names have 255 bytes at most, and others are made of it


def go_on(
    folder: RunFolder,
    *,
    as_json: bool,
    tensorboard: bool = False,
    workers: int | None = None,
    cluster: str | None = None,
) -> int:
    """Do what is left of a run, then show it.

    Args:
        folder: The run.
        as_json: Print the result as JSON.
        tensorboard: Write scalars, too; for a search.
        workers: Processes; as many as the configuration says if None.
        cluster: An address, `local`, or `none` for processes; as the configuration says if None.

    Returns:
        The exit code.

    Raises:
        InputError: If it has no scalars, is damaged, or is being written.
    """
    from forgetless.report import write_report

    kind = kind_of(folder)
    if tensorboard and not kind.has_scalars:
        raise InputError(
            f"Expected a run with scalars for --tensorboard, but {folder.path} is a run of {kind.name}. Leave it out."
        )
    with warnings_in_one_line():
        config = load_config(folder)
        config = config if workers is None else config.changed({"resources.workers": workers})
        config = config if cluster is None else config.changed({"resources.cluster": _address(cluster)})
        load_result(folder)  # what is damaged or was edited is refused before anything is written
    with contextlib.ExitStack() as held:
        with warnings_in_one_line():
            held.enter_context(folder.writing(kind.device(config)))
        scalars = EpochScalars(folder.path / TENSORBOARD) if tensorboard else None
        held.enter_context(last_words(f"go on with: forgetless resume {shlex.quote(str(folder.path))}"))
        with progress_bar() as show, warnings_in_one_line():
            on_record = None if scalars is None else scalars.write
            failures = kind.run(config, folder, on_progress=shown(show), on_record=on_record)
        with writable(folder.path / REPORT) as path, warnings_in_one_line():
            write_report([folder], path)
            result = load_result(folder)
    if as_json:
        told = {"config": folder.config, "environment": folder.environment, **kind.records(result)}
        print(json.dumps({**told, "summary": plain(result.summary())}, allow_nan=False))  # noqa: T201
    else:
        tell(kind.table(result), f"Report: {path}")
    return exit_code_of(failures)


def _address(cluster: str) -> str | None:
    return None if cluster == "none" else cluster


def search_result(folder: RunFolder) -> "SearchResult":
    """The search in a run folder.

    Args:
        folder: Of a search; of others, it is refused.

    Returns:
        Its records, all or those so far.

    Raises:
        InputError: If it is no search.
    """
    kind = kind_of(folder)
    if kind.name == COMPARE:
        from forgetless.comparison import units

        below = units(folder, load_config(folder))[0].path  # type: ignore[arg-type]
        raise InputError(
            f"Expected the run of a search, but got the comparison {folder.path}. Name {below} or another."
        )
    if kind.name != SEARCH:
        raise InputError(f"Expected the run of a search, but {folder.path} is of another kind. Name another folder.")
    with warnings_in_one_line():
        result: SearchResult = load_result(folder)
    return result
