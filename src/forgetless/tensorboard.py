"""The numbers of a search as TensorBoard scalars, an arm beside the other; needs the extra `tensorboard`."""

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetless.errors import InputError

if TYPE_CHECKING:
    from forgetless.search.records import SearchRecord

_IDENTITY = ("seed", "epoch")  # they are in the name of the arm's folder and on the axis


def expect_tensorboard() -> None:
    """Refuse to go on without the package.

    Raises:
        InputError: If it is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError("Expected the package tensorboard, but it is not installed. Run `pip install tensorboard`.")


class EpochScalars:
    """Writes the records of epochs below a folder, `seed0-wpl/` and so on, with the epoch as the step.

    A resumed run gives its earlier records again; TensorBoard then takes those in the place of what is already there,
    so that it shows every epoch once, and all of them even where the run began without it.

    Args:
        folder: Where; made with the first record.

    Raises:
        InputError: If TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        expect_tensorboard()
        self.folder = folder
        self._writers: dict[str, Any] = {}

    def write(self, record: "SearchRecord") -> None:
        """Add one record, and force it to the disk; one that is no epoch's is skipped.

        Args:
            record: Of a search.
        """
        if record.event != "epoch":
            return
        values = record.to_dict()
        arm, epoch = f"seed{record.seed}-{record.protection}", values["epoch"]
        if arm not in self._writers:
            # Here, because TensorBoard takes a second to import.
            from torch.utils.tensorboard import SummaryWriter

            self._writers[arm] = SummaryWriter(self.folder / arm, purge_step=epoch)
        for name, value in _numbers(values):
            self._writers[arm].add_scalar(name, value, epoch)
        self._writers[arm].flush()


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a record by its key, `seconds/train` where it lies deeper."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key not in _IDENTITY:
            yield prefix + key, value
