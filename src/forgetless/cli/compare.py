"""`forgetless compare`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from forgetless.comparison.config import ComparisonConfig


def compare_command(
    config: ComparisonConfig,
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
    from forgetless.cli.folders import start

    return start("compare", config, output, overwrite=overwrite, as_json=as_json)
