"""`forgetless two-model`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from forgetless.experiments.two_model.config import EXPERIMENT, TwoModelConfig


def two_model_command(
    config: TwoModelConfig,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Train B on layers of A, and follow what A loses (the paper's figures 1 and 3).

    Args:
        config: What to do.
        output: Folder for the run; a new one below runs/ by default.
        overwrite: Replace the run folder if it exists.
        as_json: Print the result as JSON on standard output, and nothing else there.
    """
    from forgetless.cli.folders import start

    return start(EXPERIMENT, config, output, overwrite=overwrite, as_json=as_json)
