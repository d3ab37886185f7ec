"""`forgetless resume`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from forgetless.cli.folders import go_on
from forgetless.cli.terminal import warnings_in_one_line
from forgetless.configuration import MOST_THREADS
from forgetless.runs import RunFolder


def resume_command(
    run: Path,
    /,
    *,
    plugin: tuple[Path, ...] = (),  # noqa: ARG001 (`main` has loaded them)
    workers: Annotated[int | None, Parameter(validator=Number(gte=1, lte=MOST_THREADS))] = None,
    cluster: str | None = None,
    tensorboard: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Go on with an interrupted run, to the same numbers as if it had never stopped.

    Args:
        run: The run folder.
        plugin: Files with the methods of one's own that the run was made with.
        workers: Processes, or tasks at a time on a cluster; as many as it was begun with by default.
        cluster: The address of a Ray cluster, `local` to start one here, or `none` for processes of this machine; as it
            was begun by default.
        tensorboard: Write every epoch's numbers as scalars below the run folder, too; for a search.
        as_json: Print the result as JSON on standard output, and nothing else there.
    """
    with warnings_in_one_line():
        folder = RunFolder.open_to_go_on(run)
    return go_on(folder, as_json=as_json, tensorboard=tensorboard, workers=workers, cluster=cluster)
