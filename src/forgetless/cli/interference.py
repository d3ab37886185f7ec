"""`forgetless interference`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from forgetless import search
from forgetless.cli.folders import search_result
from forgetless.cli.terminal import AGAIN, last_words, progress_bar, shown, tell, warnings_in_one_line, writable
from forgetless.errors import InputError, expect_one_of
from forgetless.records import plain
from forgetless.runs import INTERFERENCE, RunFolder
from forgetless.search import SearchConfig


def interference_command(
    run: Path,
    /,
    *,
    models: Annotated[int, Parameter(validator=Number(gte=2, lte=1000))] = 8,
    batches: Annotated[int | None, Parameter(validator=Number(gte=1, lt=2**63))] = None,
    seed: int | None = None,
    protection: Annotated[tuple[str, ...], Parameter(show_default=False)] = (),
    output: Path | None = None,
    plugin: tuple[Path, ...] = (),  # noqa: ARG001 (`main` has loaded them)
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Measure which architecture of a finished search overwrites which.

    Args:
        run: The run folder of a search.
        models: Architectures to draw, the same for every protection.
        batches: How many each is trained for; the search's batches_per_model by default.
        seed: Of the searches; their first by default, or, where none is finished, that of the newest checkpoint.
        protection: Of the searches; all that are finished by default.
        output: Folder for interference.json and interference.png; the run folder by default.
        plugin: Files with the methods of one's own that the run was made with.
        as_json: Print the result as JSON on standard output, and nothing else there.

    Raises:
        InputError: If the run is no search, or has no state of those asked for.
    """
    from forgetless.experiments.interference import store_interference
    from forgetless.report import interference_map, interference_table

    folder = RunFolder(run)
    result = search_result(folder)
    states = _trained_states(folder, result.config, seed, protection)
    with last_words(AGAIN), progress_bar() as show:
        arms = search.measure_arms(
            result.config, states, num_models=models, num_batches=batches, on_progress=shown(show)
        )
    with writable(output or folder.path) as path:
        path.mkdir(parents=True, exist_ok=True)
        picture = (path / INTERFERENCE).with_suffix(".png")
        interference_map(result, arms).savefig(picture, dpi=150)
        store_interference(arms, folder, path)
    if as_json:
        print(json.dumps({"arms": plain(arms)}, allow_nan=False))  # noqa: T201
    else:
        tell(interference_table(result, arms), f"Picture: {picture}")


def _trained_states(
    folder: RunFolder, config: SearchConfig, seed: int | None, protection: Sequence[str]
) -> list[dict[str, Any]]:
    """The states of the finished arms that are asked for, or else the newest checkpoint if it may be meant."""
    for name in protection:
        expect_one_of("protection", name, config.arms)
    asked = [arm for arm in search.search_arms(config) if not protection or arm.protection in protection]
    finished = [arm for arm in asked if arm.seed == (config.run.first_seed if seed is None else seed)]
    finished.sort(key=lambda arm: config.arms.index(arm.protection))
    with warnings_in_one_line():
        found = [folder.load_trained(arm.seed, arm.protection) for arm in finished]
        if not any(found):
            found = [folder.load_checkpoint()]
    meant = finished if seed is not None else asked
    states = [state for state in found if state is not None and search.SearchArm(**state["arm"]) in meant]
    if not states:
        which = " of those asked for" if seed is not None or protection else ""
        raise InputError(
            f"Expected a finished search or a checkpoint in {folder.path}, but got none{which}. Go on with "
            "`forgetless resume`."
        )
    return states
