"""Fine-tuning as a kind of run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.configuration import Configuration
from forgetless.experiments.base import RUN_KINDS, RunKind
from forgetless.experiments.fine_tune.config import EXPERIMENT, FineTuneConfig, arms
from forgetless.records import plain

if TYPE_CHECKING:
    from rich.table import Table

    from forgetless.experiments.fine_tune.records import FineTuneRecord
    from forgetless.experiments.fine_tune.result import FineTuneResult
    from forgetless.progress import OnProgress
    from forgetless.runs import RunFolder


@RUN_KINDS.register
class FineTuneRun(RunKind[FineTuneConfig, "FineTuneResult"]):
    """A language model on new text."""

    name: ClassVar[str] = EXPERIMENT
    Config: ClassVar[type[Configuration]] = FineTuneConfig
    template: ClassVar[str] = "fine_tune/section.html"
    counts: ClassVar[str] = "runs"
    title: ClassVar[str] = "Fine-tuning"
    comparison_columns: ClassVar[tuple[str, ...]] = ("new text", "arm", "rise of the old loss", "new loss", "time")
    comparison_note: ClassVar[str] = (
        "Arms on the frontier. Losses in nats per token, ± half the width of the 95 % interval over seeds; that of the "
        "new loss is of its difference to no protection."
    )

    @staticmethod
    def data(config: FineTuneConfig) -> str:
        """The old text and the new ones."""
        return f"{config.texts.old} → {', '.join(config.texts.to)}"

    @staticmethod
    def check(config: FineTuneConfig) -> None:
        """Refuse missing texts, texts that the model does not know, and sizes that do not fit the memory."""
        from forgetless.experiments.fine_tune.running import check

        check(config)

    @staticmethod
    def make(
        config: FineTuneConfig,
        folder: RunFolder,
        *,
        on_progress: OnProgress | None = None,
        on_record: Callable[[FineTuneRecord], None] | None = None,  # noqa: ARG004
    ) -> Mapping[str, str]:
        """Make what the folder lacks of its arms."""
        from forgetless.experiments.arms import make_in_folder
        from forgetless.experiments.fine_tune.running import run

        make_in_folder(run, FineTuneRun, config, folder, on_progress)
        return {}

    @staticmethod
    def read(config: FineTuneConfig, folder: RunFolder) -> list[FineTuneRecord]:
        """Arms."""
        from forgetless.experiments.arms import read_arms
        from forgetless.experiments.fine_tune.records import FineTuneRecord

        return read_arms(folder, FineTuneRun.name, FineTuneRecord, arms(config))

    @staticmethod
    def pieces(config: FineTuneConfig) -> dict[str, FineTuneConfig]:
        """One for each seed, whose arms share a pretraining."""
        return {
            f"seed-{seed}": config.changed(
                {"run.seeds": 1, "run.first_seed": seed, "resources.workers": None, "resources.cluster": None}
            )
            for seed in config.run.all_seeds
        }

    @staticmethod
    def num_records(config: FineTuneConfig) -> int:
        """One for each arm."""
        return len(arms(config))

    @staticmethod
    def belongs(config: FineTuneConfig, record: FineTuneRecord) -> bool:
        """By its seed."""
        return record.seed in config.run.all_seeds

    @staticmethod
    def ordered(config: FineTuneConfig, records: Sequence[FineTuneRecord]) -> list[FineTuneRecord]:
        """In the order of the arms."""
        from forgetless.experiments.arms import in_order

        return in_order(records, arms(config))

    @staticmethod
    def is_state_of(config: FineTuneConfig, state: Mapping[str, Any]) -> bool:
        """By its seed."""
        return state["seed"] in config.run.all_seeds

    @staticmethod
    def load(config: FineTuneConfig, folder: RunFolder) -> FineTuneResult:
        """The records so far, those that diverged apart."""
        from forgetless.experiments.fine_tune.result import FineTuneResult

        return FineTuneResult.of(config, FineTuneRun.read(config, folder))

    @staticmethod
    def records(result: FineTuneResult) -> dict[str, Any]:
        """All arms."""
        return {"runs": plain([*result.runs, *result.diverged])}

    @staticmethod
    def table(result: FineTuneResult) -> Table:
        """What each protection kept and learnt."""
        from forgetless.report.fine_tune.page import fine_tune_table

        return fine_tune_table(result)

    @staticmethod
    def section(result: FineTuneResult, folder: RunFolder) -> dict[str, Any]:  # noqa: ARG004
        """Frontier, curves, tables."""
        from forgetless.report.fine_tune.page import fine_tune_section

        return fine_tune_section(result)

    @staticmethod
    def comparison_rows(result: FineTuneResult) -> list[list[str]]:
        """A line for each arm on the frontier."""
        from forgetless.report.fine_tune.page import fine_tune_comparison

        return fine_tune_comparison(result)
