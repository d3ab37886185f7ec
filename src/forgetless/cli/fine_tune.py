"""`forgetless fine-tune`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from forgetless.experiments.fine_tune.config import EXPERIMENT, FineTuneConfig


def fine_tune_command(
    config: FineTuneConfig,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Fine-tune a language model on new text, and measure what it loses of the old.

    Args:
        config: What to do.
        output: Folder for the run; a new one below runs/ by default.
        overwrite: Replace the run folder if it exists.
        as_json: Print the result as JSON on standard output, and nothing else there.
    """
    from forgetless.cli.folders import start

    return start(EXPERIMENT, config, output, overwrite=overwrite, as_json=as_json)
