"""`forgetless search`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from forgetless import search
from forgetless.cli.folders import start
from forgetless.cli.terminal import Show, show_search, warnings_in_one_line
from forgetless.errors import InputError
from forgetless.protection import MATCHED
from forgetless.runs import SEARCH, RunFolder
from forgetless.search import SearchConfig
from forgetless.tensorboard import EpochScalars, expect_tensorboard


def search_command(
    config: Annotated[SearchConfig | None, Parameter(name="*")] = None,
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
        controls: Three arms of the same seeds: unprotected, matched learning rate, weight plasticity.
        output: Folder for the run; a new one below runs/ by default.
        overwrite: Replace the run folder if it exists.
        tensorboard: Write every epoch's numbers as scalars below the run folder, too.
        as_json: Print the result as JSON on standard output, and nothing else there.
    """
    config = config or SearchConfig()
    if controls and not config.trains_shared_weights:
        raise InputError(
            f"Expected a strategy that trains shared weights for --controls, but got {config.strategy}. Leave "
            "--controls out: there is nothing to protect."
        )
    if controls and config.protection != SearchConfig().protection:
        raise InputError(
            "Expected --controls or --protection, but got both. --controls chooses none, matched-lr and wpl."
        )
    if controls:
        config = dataclasses.replace(config, protection=("none", MATCHED, "wpl"))
    if tensorboard:
        expect_tensorboard()
    search.check_memory(config, search.load_task(config))  # bad input is refused before anything is written
    return start(SEARCH, config, output, overwrite=overwrite, as_json=as_json, tensorboard=tensorboard)


def run(folder: RunFolder, values: dict[str, Any], show: Show, scalars: EpochScalars | None) -> dict[str, str]:
    """Do what is left of a run; what failed, and why. `folders.go_on` calls it."""
    config = SearchConfig.from_dict(values)
    on_record = None if scalars is None else scalars.write
    with warnings_in_one_line():
        search.run_in_folder(config, folder, on_record=on_record, on_progress=show_search(show))
    return {}
