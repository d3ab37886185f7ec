"""`forgetless report`."""

from pathlib import Path

from forgetless.cli.terminal import tell, warnings_in_one_line, writable
from forgetless.errors import InputError
from forgetless.report import write_report
from forgetless.runs import REPORT, RunFolder


def report_command(
    run: list[Path],
    /,
    *,
    output: Path | None = None,
    plugin: tuple[Path, ...] = (),  # noqa: ARG001 (`main` has loaded them)
) -> None:
    """Make one HTML page of any number of runs.

    Args:
        run: The run folders.
        output: The page; report.html in the first folder by default.
        plugin: Files with the methods of one's own that the runs were made with.

    Raises:
        InputError: If there is no folder, or one is no run folder.
    """
    folders = [RunFolder(path) for path in run]
    if not folders:
        raise InputError("Expected at least one run folder, but got none.")
    with writable(output or folders[0].path / REPORT) as path, warnings_in_one_line():
        write_report(folders, path)
    tell(f"Report: {path}")
