"""`forgetless search`."""

import dataclasses
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from forgetless.errors import InputError
from forgetless.parts import default_protections
from forgetless.protection import BASELINE, PROTECTIONS
from forgetless.search.config import EXPERIMENT, SearchConfig


def search_command(
    config: SearchConfig,
    *,
    controls: bool = False,
    output: Path | None = None,
    overwrite: bool = False,
    tensorboard: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Search an architecture on shared weights, and measure forgetting (figure 4).

    Args:
        config: What to do.
        controls: Two more arms of the same seeds: unprotected, and a matched learning rate.
        output: Folder for the run; a new one below runs/ by default.
        overwrite: Replace the run folder if it exists.
        tensorboard: Write every epoch's numbers as scalars below the run folder, too.
        as_json: Print the result as JSON on standard output, and nothing else there.
    """
    from forgetless.cli.folders import start
    from forgetless.tensorboard import expect_tensorboard

    if controls:
        config = with_controls(config)
    if tensorboard:
        expect_tensorboard()
    return start(EXPERIMENT, config, output, overwrite=overwrite, as_json=as_json, tensorboard=tensorboard)


def with_controls(config: SearchConfig) -> SearchConfig:
    """The same with the unprotected arm, and the control arms of its protections.

    Args:
        config: With protections of which at least one has a control arm.

    Raises:
        InputError: If none has.
    """
    found = [kind.name for kind in PROTECTIONS.values() if kind.matches in config.arms]
    if not found:
        raise InputError(
            f"Expected wpl among the protections for --controls, but got {', '.join(config.arms)}. Leave --controls "
            "out, or add wpl."
        )
    added = [name for name in (BASELINE, *found) if name not in config.arms]
    return dataclasses.replace(config, protections=(*default_protections(*added), *config.protections))
