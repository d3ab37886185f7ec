"""`forgetless landscape`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from forgetless.experiments.landscape.config import EXPERIMENT, LandscapeConfig


def landscape_command(
    config: LandscapeConfig,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Draw where B's training moves shared weights, over A's and B's loss (figure 2).

    Args:
        config: What to do.
        output: Folder for the run; a new one below runs/ by default.
        overwrite: Replace the run folder if it exists.
        as_json: Print the result as JSON on standard output, and nothing else there.
    """
    from forgetless.cli.folders import start

    return start(EXPERIMENT, config, output, overwrite=overwrite, as_json=as_json)
