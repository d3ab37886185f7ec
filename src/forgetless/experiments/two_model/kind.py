"""The two-model experiment as a kind of run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.configuration import Configuration
from forgetless.experiments.base import RUN_KINDS, RunKind
from forgetless.experiments.two_model.config import TwoModelConfig, arms
from forgetless.records import plain

if TYPE_CHECKING:
    from rich.table import Table

    from forgetless.experiments.two_model.records import RunRecord
    from forgetless.experiments.two_model.result import TwoModelResult
    from forgetless.progress import OnProgress
    from forgetless.runs import RunFolder


@RUN_KINDS.register
class TwoModelRun(RunKind[TwoModelConfig, "TwoModelResult"]):
    """B, and later models, on layers of A."""

    name: ClassVar[str] = "two-model"
    Config: ClassVar[type[Configuration]] = TwoModelConfig
    template: ClassVar[str] = "two_model/section.html"
    counts: ClassVar[str] = "runs"
    title: ClassVar[str] = "Two models"
    comparison_columns: ClassVar[tuple[str, ...]] = (
        *("setting", "protection", "forgetting without", "forgetting with", "reduction, %", "B’s cost"),
    )
    comparison_note: ClassVar[str] = (
        "Forgetting of A and B’s cost in points of test accuracy, ± half the width of the 95 % interval over seeds."
    )

    @staticmethod
    def check(config: TwoModelConfig) -> None:
        """Refuse missing data and sizes that do not fit the memory."""
        from forgetless.experiments.two_model.running import check_memory, load_task

        check_memory(config, load_task(config))

    @staticmethod
    def make(
        config: TwoModelConfig,
        folder: RunFolder,
        *,
        on_progress: OnProgress | None = None,
        on_record: Callable[[RunRecord], None] | None = None,  # noqa: ARG004
    ) -> Mapping[str, str]:
        """Make what the folder lacks of its arms."""
        from forgetless.experiments.arms import make_in_folder
        from forgetless.experiments.two_model.running import run

        make_in_folder(run, TwoModelRun, config, folder, on_progress)
        return {}

    @staticmethod
    def read(config: TwoModelConfig, folder: RunFolder) -> list[RunRecord]:
        """Arms."""
        from forgetless.experiments.arms import read_arms
        from forgetless.experiments.two_model.records import RunRecord

        return read_arms(folder, TwoModelRun.name, RunRecord, arms(config))

    @staticmethod
    def pieces(config: TwoModelConfig) -> dict[str, TwoModelConfig]:
        """One for each A: seed, shared layers and convergence."""
        return {
            f"seed-{seed}-shared-{shared}-convergence-{convergence:g}": config.changed(
                {
                    "run.seeds": 1,
                    "run.first_seed": seed,
                    "resources.workers": None,
                    "resources.cluster": None,
                    "chain.shared": (shared,),
                    "chain.convergence": (convergence,),
                }
            )
            for seed in config.run.all_seeds
            for shared in config.chain.shared
            for convergence in config.chain.convergence
        }

    @staticmethod
    def num_records(config: TwoModelConfig) -> int:
        """One for each arm."""
        return len(arms(config))

    @staticmethod
    def belongs(config: TwoModelConfig, record: RunRecord) -> bool:
        """By its A."""
        return TwoModelRun._is_of(config, record.seed, record.shared, record.convergence)

    @staticmethod
    def _is_of(config: TwoModelConfig, seed: int, shared: int, convergence: float) -> bool:
        chain = config.chain
        return seed in config.run.all_seeds and shared in chain.shared and convergence in chain.convergence

    @staticmethod
    def ordered(config: TwoModelConfig, records: Sequence[RunRecord]) -> list[RunRecord]:
        """In the order of the arms."""
        from forgetless.experiments.arms import in_order

        return in_order(records, arms(config))

    @staticmethod
    def is_state_of(config: TwoModelConfig, state: Mapping[str, Any]) -> bool:
        """By its A."""
        return TwoModelRun._is_of(config, *state["origin"])

    @staticmethod
    def load(config: TwoModelConfig, folder: RunFolder) -> TwoModelResult:
        """The records so far, those that diverged apart."""
        from forgetless.experiments.two_model.result import TwoModelResult

        return TwoModelResult.of(config, TwoModelRun.read(config, folder))

    @staticmethod
    def records(result: TwoModelResult) -> dict[str, Any]:
        """All arms."""
        return {"runs": plain([*result.runs, *result.diverged])}

    @staticmethod
    def table(result: TwoModelResult) -> Table:
        """What each protection did to A and to B."""
        from forgetless.report.two_model.page import summary_table

        return summary_table(result)

    @staticmethod
    def section(result: TwoModelResult, folder: RunFolder) -> dict[str, Any]:  # noqa: ARG004
        """Curves, bars, trade-off, tables."""
        from forgetless.report.two_model.page import two_model_section

        return two_model_section(result)

    @staticmethod
    def comparison_rows(result: TwoModelResult) -> list[list[str]]:
        """A line for each panel."""
        from forgetless.report.two_model.page import two_model_comparison

        return two_model_comparison(result)
