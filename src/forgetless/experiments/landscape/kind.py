"""The landscape as a kind of run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.configuration import Configuration
from forgetless.experiments.base import RUN_KINDS, RunKind
from forgetless.experiments.landscape.config import LandscapeConfig
from forgetless.records import plain

if TYPE_CHECKING:
    from rich.table import Table

    from forgetless.experiments.landscape.records import LandscapeRecord
    from forgetless.experiments.landscape.result import LandscapeResult
    from forgetless.progress import OnProgress
    from forgetless.runs import RunFolder


@RUN_KINDS.register
class LandscapeRun(RunKind[LandscapeConfig, "LandscapeResult"]):
    """A plane through A's weights, and the paths of B's training."""

    name: ClassVar[str] = "landscape"
    Config: ClassVar[type[Configuration]] = LandscapeConfig
    template: ClassVar[str] = "landscape/section.html"
    counts: ClassVar[str] = "records"
    title: ClassVar[str] = "Landscapes"

    @staticmethod
    def check(config: LandscapeConfig) -> None:
        """Refuse missing data and sizes that do not fit the memory."""
        from forgetless.experiments.landscape.running import check
        from forgetless.experiments.two_model.running import load_task

        check(config, load_task(config.two_models))

    @staticmethod
    def make(
        config: LandscapeConfig,
        folder: RunFolder,
        *,
        on_progress: OnProgress | None = None,
        on_record: Callable[[Any], None] | None = None,  # noqa: ARG004
    ) -> Mapping[str, str]:
        """Make what the folder lacks of its seeds."""
        from forgetless.experiments.landscape.running import run_in_folder

        run_in_folder(config, folder, on_progress=on_progress)
        return {}

    @staticmethod
    def read(config: LandscapeConfig, folder: RunFolder) -> list[LandscapeRecord]:
        """Planes and arms."""
        from forgetless.experiments.landscape.records import read_records

        return read_records(config, folder)

    @staticmethod
    def pieces(config: LandscapeConfig) -> dict[str, LandscapeConfig]:
        """One for each seed."""
        return {
            f"seed-{seed}": config.changed(
                {"run.seeds": 1, "run.first_seed": seed, "resources.workers": None, "resources.cluster": None}
            )
            for seed in config.run.all_seeds
        }

    @staticmethod
    def num_records(config: LandscapeConfig) -> int:
        """A plane for each seed, and one for each arm."""
        return len(config.run.all_seeds) + len(config.arms)

    @staticmethod
    def belongs(config: LandscapeConfig, record: LandscapeRecord) -> bool:
        """By its seed."""
        return record.seed in config.run.all_seeds

    @staticmethod
    def ordered(config: LandscapeConfig, records: Sequence[LandscapeRecord]) -> list[LandscapeRecord]:
        """By seed; the plane, then the arms as the configuration has them."""
        from forgetless.experiments.landscape.records import place_of, places

        order = {place: i for i, place in enumerate(places(config))}
        return sorted(records, key=lambda record: order[place_of(record)])

    @staticmethod
    def is_state_of(config: LandscapeConfig, state: Mapping[str, Any]) -> bool:
        """By its seed."""
        return state["seed"] in config.run.all_seeds

    @staticmethod
    def load(config: LandscapeConfig, folder: RunFolder) -> LandscapeResult:
        """The records so far."""
        from forgetless.experiments.landscape.records import read_records
        from forgetless.experiments.landscape.result import LandscapeResult

        return LandscapeResult.of(config, read_records(config, folder))

    @staticmethod
    def records(result: LandscapeResult) -> dict[str, Any]:
        """All planes and arms."""
        return {"records": plain([*result.surfaces.values(), *result.arms])}

    @staticmethod
    def table(result: LandscapeResult) -> Table:
        """How far each arm went, and what it did to A."""
        from forgetless.report.landscape.page import landscape_table

        return landscape_table(result)

    @staticmethod
    def section(result: LandscapeResult, folder: RunFolder) -> dict[str, Any]:  # noqa: ARG004
        """Plane, finding, tables."""
        from forgetless.report.landscape.page import landscape_section

        return landscape_section(result)
