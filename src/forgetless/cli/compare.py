"""`forgetless compare`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from forgetless import comparison
from forgetless.cli.folders import start
from forgetless.cli.terminal import Show, show_search, warnings_in_one_line
from forgetless.comparison import ComparisonConfig
from forgetless.runs import COMPARE, RunFolder


def compare_command(
    config: Annotated[ComparisonConfig | None, Parameter(name="*")] = None,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Compare protections, strategies and seeds on one space, in one ranked table.

    Args:
        config: What to do.
        output: Folder for all searches and the report; a new one below runs/ by default.
        overwrite: Replace the folder if it exists.
        as_json: Print the result as JSON on standard output, and nothing else there.
    """
    config = config or ComparisonConfig()
    comparison.check(config)  # bad input is refused before anything is written
    return start(COMPARE, config, output, overwrite=overwrite, as_json=as_json)


def run(folder: RunFolder, values: dict[str, Any], show: Show, _scalars: object) -> Mapping[str, str]:
    """Do what is left of a run; what failed, and why. `folders.go_on` calls it."""
    with warnings_in_one_line():
        return comparison.run_comparison(folder, ComparisonConfig.from_dict(values), on_progress=show_search(show))
