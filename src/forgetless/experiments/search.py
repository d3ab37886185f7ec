"""A search as a kind of run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.configuration import Configuration
from forgetless.experiments.base import RUN_KINDS, RunKind
from forgetless.records import plain
from forgetless.search.config import SearchArm, SearchConfig, search_arms

if TYPE_CHECKING:
    from rich.table import Table

    from forgetless.progress import OnProgress
    from forgetless.protection import ProtectionOptions
    from forgetless.runs import RunFolder
    from forgetless.search.records import SearchRecord
    from forgetless.search.result import SearchResult


@RUN_KINDS.register
class SearchRun(RunKind[SearchConfig, "SearchResult"]):
    """An architecture search on shared weights."""

    name: ClassVar[str] = "search"
    Config: ClassVar[type[Configuration]] = SearchConfig
    works_in_ranks: ClassVar[bool] = True
    has_scalars: ClassVar[bool] = True
    template: ClassVar[str] = "search/section.html"
    counts: ClassVar[str] = "searches"
    title: ClassVar[str] = "Searches"
    comparison_columns: ClassVar[tuple[str, ...]] = (
        *("search", "protection", "forgetting without", "forgetting with", "reduction, %"),
        *("reward without", "reward with"),
    )
    comparison_note: ClassVar[str] = (
        "Forgetting is the mean over the epochs in which unprotected models forget, the reward that over the last "
        "quarter; ± half the width of the 95 % interval over seeds."
    )

    @staticmethod
    def check(config: SearchConfig) -> None:
        """Refuse missing data and sizes that do not fit the memory."""
        from forgetless.search.setup import check_memory, check_ranks, load_task

        task = load_task(config)
        check_memory(config, task)
        check_ranks(config, task)

    @staticmethod
    def make(
        config: SearchConfig,
        folder: RunFolder,
        *,
        on_progress: OnProgress | None = None,
        on_record: Callable[[SearchRecord], None] | None = None,
    ) -> Mapping[str, str]:
        """Make what the folder lacks of its searches."""
        from forgetless.search.folder import run_in_folder

        run_in_folder(config, folder, on_record=on_record, on_progress=on_progress)
        return {}

    @staticmethod
    def read(config: SearchConfig, folder: RunFolder) -> list[SearchRecord]:
        """Epochs and derivations."""
        from forgetless.search.records import read_records

        return read_records(config, folder)

    @staticmethod
    def pieces(config: SearchConfig) -> dict[str, SearchConfig]:
        """One for each seed and protection; a control arm goes with what it is matched to."""
        groups: dict[str, list[ProtectionOptions]] = {}
        for each in config.protections:
            groups.setdefault(each.kind.matches or each.kind.name, []).append(each)
        return {
            f"seed-{seed}-{name}": config.changed(
                {
                    "protections": tuple(group),
                    "run.seeds": 1,
                    "run.first_seed": seed,
                    "resources.workers": None,
                    "resources.cluster": None,
                }
            )
            for seed in config.run.all_seeds
            for name, group in groups.items()
        }

    @staticmethod
    def num_records(config: SearchConfig) -> int:
        """Epochs of all arms, and their derivations."""
        return len(search_arms(config)) * config.num_records

    @staticmethod
    def belongs(config: SearchConfig, record: SearchRecord | SearchArm) -> bool:
        """By seed and protection."""
        return record.seed in config.run.all_seeds and record.protection in config.arms

    @staticmethod
    def ordered(config: SearchConfig, records: Sequence[SearchRecord]) -> list[SearchRecord]:
        """Arm by arm."""
        place = {arm: i for i, arm in enumerate(search_arms(config))}
        return sorted(records, key=lambda record: place[record.arm])

    @staticmethod
    def is_state_of(config: SearchConfig, state: Mapping[str, Any]) -> bool:
        """By its arm."""
        return SearchRun.belongs(config, SearchArm(**state["arm"]))

    @staticmethod
    def final_states(config: SearchConfig) -> list[tuple[int, str]]:
        """Of every arm that has epochs."""
        return [(arm.seed, arm.protection) for arm in search_arms(config)] if config.num_epochs else []

    @staticmethod
    def load(config: SearchConfig, folder: RunFolder) -> SearchResult:
        """The records so far."""
        from forgetless.search.result import SearchResult

        return SearchResult(config, SearchRun.read(config, folder))

    @staticmethod
    def records(result: SearchResult) -> dict[str, Any]:
        """All records."""
        return {"records": plain(result.records)}

    @staticmethod
    def table(result: SearchResult) -> Table:
        """Forgetting, and what came of the search."""
        from forgetless.report.search.page import search_table

        return search_table(result)

    @staticmethod
    def section(result: SearchResult, folder: RunFolder) -> dict[str, Any]:
        """Curves, tables, cells; and who overwrites whom, where it was measured."""
        from forgetless.experiments.interference import load_interference
        from forgetless.report.search.page import search_section

        return search_section(result, load_interference(folder))

    @staticmethod
    def comparison_rows(result: SearchResult) -> list[list[str]]:
        """One line."""
        from forgetless.report.search.page import search_comparison

        return [search_comparison(result)]
