"""A comparison as a kind of run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.comparison.config import ComparisonConfig
from forgetless.configuration import Configuration
from forgetless.experiments.base import RUN_KINDS, RunKind

if TYPE_CHECKING:
    from rich.table import Table

    from forgetless.comparison.result import ComparisonResult
    from forgetless.comparison.run import FailureRecord
    from forgetless.progress import OnProgress
    from forgetless.runs import RunFolder


@RUN_KINDS.register
class ComparisonRun(RunKind[ComparisonConfig, "ComparisonResult"]):
    """Protections × strategies × seeds on one space."""

    name: ClassVar[str] = "compare"
    Config: ClassVar[type[Configuration]] = ComparisonConfig
    template: ClassVar[str] = "comparison/section.html"
    counts: ClassVar[str] = "searches"

    @staticmethod
    def device(config: ComparisonConfig) -> str:
        """Of its searches."""
        return config.search.run.device

    @staticmethod
    def data(config: ComparisonConfig) -> str:
        """Of its searches."""
        return config.search.data.name

    @staticmethod
    def check(config: ComparisonConfig) -> None:
        """Refuse too few seeds, missing data or truth, and sizes that do not fit the memory."""
        from forgetless.comparison.run import check

        check(config)

    @staticmethod
    def make(
        config: ComparisonConfig,
        folder: RunFolder,
        *,
        on_progress: OnProgress | None = None,
        on_record: Callable[[Any], None] | None = None,  # noqa: ARG004
    ) -> Mapping[str, str]:
        """Make what is left of the comparison; what failed twice is told."""
        from forgetless.comparison.run import run_comparison

        return run_comparison(folder, config, on_progress=on_progress)

    @staticmethod
    def read(config: ComparisonConfig, folder: RunFolder) -> list[FailureRecord]:
        """What failed: the records of its searches are in their own folders."""
        from forgetless.comparison.run import FailureRecord, read_failures

        return [FailureRecord(unit=name, reason=why) for name, why in read_failures(folder, config).items()]

    @staticmethod
    def load(config: ComparisonConfig, folder: RunFolder) -> ComparisonResult:
        """The records of all searches, and how they were judged."""
        from forgetless.comparison.result import load_comparison

        return load_comparison(folder, config)

    @staticmethod
    def records(result: ComparisonResult) -> dict[str, Any]:  # noqa: ARG004
        """Nothing: the records of its searches are in their own folders."""
        return {}

    @staticmethod
    def table(result: ComparisonResult) -> Table:
        """All rows, ranked."""
        from forgetless.report.comparison.page import comparison_table

        return comparison_table(result)

    @staticmethod
    def section(result: ComparisonResult, folder: RunFolder) -> dict[str, Any]:  # noqa: ARG004
        """Tables, picture, tests."""
        from forgetless.report.comparison.page import comparison_section

        return comparison_section(result)
