"""What a command can run: each kind of run registers how it is made, read and shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from forgetless.configuration import Configuration
from forgetless.records import Record
from forgetless.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from forgetless.progress import OnProgress
    from forgetless.runs import RunFolder

C = TypeVar("C", bound=Configuration)
R = TypeVar("R")

RUN_KINDS: Registry[type[RunKind[Any, Any]]] = Registry("experiment", "forgetless.experiments")
"""Every kind of run, by the name of its command and in config.toml."""


class RunKind(ABC, Generic[C, R]):
    """A kind of run: from a configuration to records in a folder, and from these to a result.

    Nothing of it has a state.

    Attributes:
        name: Of its command, and in config.toml.
        Config: The class of its configurations.
        works_in_ranks: Whether several processes of torchrun can make one of its runs together.
        has_scalars: Whether its records can be written to TensorBoard.
        template: Of its section of the report.
        counts: What the `progress` of its results counts, such as `runs`.
        title: Of the table that sets several runs of the kind side by side.
        comparison_columns: Of that table, after the name of the run; the first two are text. None without a table.
        comparison_note: Below its title.
    """

    name: ClassVar[str]
    Config: ClassVar[type[Configuration]]
    works_in_ranks: ClassVar[bool] = False
    has_scalars: ClassVar[bool] = False
    template: ClassVar[str]
    counts: ClassVar[str]
    title: ClassVar[str] = ""
    comparison_columns: ClassVar[tuple[str, ...]] = ()
    comparison_note: ClassVar[str] = ""

    @staticmethod
    def device(config: Any) -> str:
        """Where it trains."""
        return str(config.run.device)

    @staticmethod
    def data(config: Any) -> str:
        """What it trains on."""
        return str(config.data.name)

    @staticmethod
    def cluster(config: Any) -> str | None:
        """The Ray cluster that it is spread over, if it is."""
        address: str | None = config.resources.cluster
        return address

    @staticmethod
    @abstractmethod
    def check(config: C) -> None:
        """Refuse what could not be finished, before anything is written.

        Args:
            config: What is asked for.

        Raises:
            InputError: If data is missing, or sizes do not fit the memory.
        """

    @classmethod
    def create(cls, path: Path, config: C, *, overwrite: bool = False) -> RunFolder:
        """Make a run folder.

        Args:
            path: Where.
            config: What is asked for.
            overwrite: Replace what is there if it is a run.

        Raises:
            InputError: If there is something else, or it cannot be written.
        """
        from forgetless.runs import EXPERIMENT, RunFolder

        values = {EXPERIMENT: cls.name, **config.to_dict()}
        return RunFolder.create(path, values, device=cls.device(config), overwrite=overwrite)

    @classmethod
    def run(
        cls,
        config: C,
        folder: RunFolder,
        *,
        on_progress: OnProgress | None = None,
        on_record: Callable[[Any], None] | None = None,
    ) -> Mapping[str, str]:
        """Do what is left of a run, in pieces over several processes if the kind has pieces and that is asked for.

        Args:
            config: Of the folder.
            folder: Where records go.
            on_progress: Called now and then.
            on_record: Called with each record, for kinds that have scalars.

        Returns:
            Name → reason of what failed.

        Raises:
            InputError: If it cannot be done.
        """
        from forgetless.experiments.pieces import expect_one_way, run_in_pieces, wants_pieces

        expect_one_way(cls, config, folder.path)
        if wants_pieces(config, folder.path) and cls.pieces(config):
            return run_in_pieces(cls, config, folder, on_progress=on_progress, on_record=on_record)
        return cls.make(config, folder, on_progress=on_progress, on_record=on_record)

    @staticmethod
    @abstractmethod
    def make(
        config: C,
        folder: RunFolder,
        *,
        on_progress: OnProgress | None = None,
        on_record: Callable[[Any], None] | None = None,
    ) -> Mapping[str, str]:
        """Do what is left of a run, in this process.

        Args:
            config: Of the folder.
            folder: Where records go.
            on_progress: Called now and then.
            on_record: Called with each record, for kinds that have scalars.

        Returns:
            Name → reason of what failed.

        Raises:
            InputError: If it cannot be done.
        """

    # ---- over several processes; see `forgetless.experiments.pieces` -------------------------------------------------

    @staticmethod
    @abstractmethod
    def read(config: C, folder: RunFolder) -> Sequence[Record]:
        """The records of a folder, checked.

        Args:
            config: Of the folder.
            folder: The folder.

        Raises:
            InputError: If one is damaged, or not one that the configuration makes.
        """

    @staticmethod
    def pieces(config: C) -> dict[str, C]:  # noqa: ARG004
        """Name → configuration of each independent piece; none for kinds that spread themselves."""
        return {}

    @staticmethod
    def num_records(config: C) -> int:  # noqa: ARG004
        """How many records a finished run has."""
        return 0

    @staticmethod
    def belongs(config: C, record: Any) -> bool:  # noqa: ARG004
        """Whether a record is one that a piece's configuration makes."""
        return False

    @staticmethod
    def ordered(config: C, records: Sequence[Any]) -> Sequence[Record]:  # noqa: ARG004
        """Records in the order in which one process makes them; those of one arm are in order."""
        return records

    @staticmethod
    def is_state_of(config: C, state: Mapping[str, Any]) -> bool:  # noqa: ARG004
        """Whether a checkpoint is of a piece's work."""
        return False

    @staticmethod
    def final_states(config: C) -> list[tuple[int, str]]:  # noqa: ARG004
        """Seed and protection of each arm of which a final state is kept."""
        return []

    @staticmethod
    @abstractmethod
    def load(config: C, folder: RunFolder) -> R:
        """The result that a folder holds, as far as the run got.

        Args:
            config: Of the folder.
            folder: The folder.

        Raises:
            InputError: If a record is damaged.
        """

    @staticmethod
    @abstractmethod
    def records(result: R) -> dict[str, Any]:
        """What the JSON of a command says beside the summary."""

    @staticmethod
    @abstractmethod
    def table(result: R) -> Table:
        """What the terminal shows, at most 80 columns wide."""

    @staticmethod
    @abstractmethod
    def section(result: R, folder: RunFolder) -> dict[str, Any]:
        """What the report shows.

        Args:
            result: Of the folder.
            folder: For what was measured afterwards.
        """

    @staticmethod
    def comparison_rows(result: R) -> list[list[str]]:  # noqa: ARG004
        """Lines of the table that sets several runs of the kind side by side; none for kinds without one."""
        return []


def kind_of(folder: RunFolder) -> type[RunKind[Any, Any]]:
    """The kind of a run folder.

    Args:
        folder: The folder.
    """
    return RUN_KINDS[folder.header.experiment]


def load_config(folder: RunFolder) -> Configuration:
    """The configuration of a run folder.

    Args:
        folder: The folder.

    Raises:
        InputError: If it was edited, or an option does not fit.
    """
    config = kind_of(folder).Config.from_dict(folder.header.options)
    folder.expect_unedited()
    return config


def load_result(folder: RunFolder) -> Any:
    """The configuration and records of a run folder, as a result of its kind.

    Args:
        folder: The folder.

    Returns:
        The result, as far as the run got.

    Raises:
        InputError: If a record lacks what every record has.
    """
    return kind_of(folder).load(load_config(folder), folder)
