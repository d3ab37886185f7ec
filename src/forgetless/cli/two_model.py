"""`forgetless two-model`."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from forgetless.cli.folders import start
from forgetless.cli.terminal import Show, warnings_in_one_line
from forgetless.experiments import two_model
from forgetless.experiments.two_model import TwoModelConfig
from forgetless.runs import TWO_MODEL, RunFolder


def two_model_command(
    config: Annotated[TwoModelConfig | None, Parameter(name="*")] = None,
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
    config = config or TwoModelConfig()
    two_model.check_memory(config, two_model.load_task(config))  # bad input is refused before anything is written
    return start(TWO_MODEL, config, output, overwrite=overwrite, as_json=as_json)


def run(folder: RunFolder, values: dict[str, Any], show: Show, _scalars: object) -> dict[str, str]:
    """Do what is left of a run; what failed, and why. `folders.go_on` calls it."""

    def on_progress(progress: two_model.Progress) -> None:
        accuracies = "  ".join(f"{name} {100 * value:5.1f} %" for name, value in progress.accuracies.items())
        done = progress.done + progress.step / max(1, progress.num_steps)
        show(f"{progress.label}\n{accuracies}", done, progress.total)

    with warnings_in_one_line():
        two_model.run_in_folder(TwoModelConfig.from_dict(values), folder, on_progress=on_progress)
    return {}
