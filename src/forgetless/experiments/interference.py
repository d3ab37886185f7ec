"""The file of who overwrites whom in a search, beside its records."""

from collections.abc import Sequence
from pathlib import Path

from forgetless.errors import InputError
from forgetless.interference import InterferenceRecord
from forgetless.records import plain
from forgetless.runs import INTERFERENCE, RunFolder, read_sealed, write_sealed


def store_interference(arms: Sequence[InterferenceRecord], run: RunFolder, folder: Path) -> None:
    """Write what `measure_arms` returned to interference.json.

    Args:
        arms: What was measured.
        run: The folder of the search.
        folder: Where to write.

    Raises:
        OSError: If the file cannot be written.
    """
    write_sealed(folder / INTERFERENCE, {"arms": plain(arms)}, run.header.digest)


def load_interference(folder: RunFolder) -> list[InterferenceRecord]:
    """What `store_interference` left in a run folder; empty if nothing was measured.

    Args:
        folder: The run.

    Raises:
        InputError: If the file is damaged.
    """
    path = folder.path / INTERFERENCE
    if not path.is_file():
        return []
    try:
        arms = read_sealed(path, folder.header.digest)["arms"]
        found = [InterferenceRecord.from_dict(arm, "measurements of interference", str(path)) for arm in arms]
        # What can be computed from errors and changes is computed from them.
        names = ("seed", "protection", "epochs", "num_batches")
        return [InterferenceRecord.of(each.found, **{name: getattr(each, name) for name in names}) for each in found]
    except InputError as error:
        raise InputError(f"{error} Measure again, or remove it.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"Expected measurements of interference in {path}, but it is damaged. Measure again or remove it."
        ) from error
