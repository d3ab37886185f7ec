"""Reading a graph from an `.npz` file of plain integer arrays; nothing in it is unpickled.

The file has `shape` (nodes and features), `row` and `column` (node and number of each feature that is 1), `label` (the
class of each node), `edge` (2, E), and the node numbers of `train`, `validation` and `test`.
"""

import hashlib
import io
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from forgetless.data.files import in_units, ratio_limit, read_bytes, reason_of
from forgetless.errors import InputError

Integers = npt.NDArray[np.integer]

MAX_GRAPH_BYTES = 2**28
"""The most bytes that the arrays of a graph may have: 256 MiB."""


class GraphArrays(NamedTuple):
    """What a file has.

    Attributes:
        shape: (nodes, features).
        row: Node of each feature that is 1.
        column: Its number.
        label: Class of each node.
        edge: (2, E) source and target.
        train: Node numbers.
        validation: Node numbers.
        test: Node numbers.
    """

    shape: Integers
    row: Integers
    column: Integers
    label: Integers
    edge: Integers
    train: Integers
    validation: Integers
    test: Integers

    def digest(self) -> str:
        """SHA-256 of what it says, in hexadecimal: whatever its types, archive, and order of edges and nodes."""
        found = hashlib.sha256()
        pairs = {"feature": np.stack([self.row, self.column]), "edge": self.edge}
        sets = {"train": self.train, "validation": self.validation, "test": self.test}
        content = {"shape": self.shape, "label": self.label}
        content |= {name: np.unique(array, axis=1) for name, array in pairs.items()}
        content |= {name: np.sort(array) for name, array in sets.items()}
        for name, array in sorted(content.items()):
            found.update(f"{name} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).astype("<i8").tobytes())
        return found.hexdigest()


def read_arrays(path: Path) -> GraphArrays:
    """Read a graph.

    Args:
        path: An `.npz` file.

    Returns:
        Its arrays, which fit together.

    Raises:
        InputError: If the file cannot be read or is no `.npz` file, an array is missing or of something else than
            integers, the arrays are too large, or a number is out of its range.
    """
    content = read_bytes(path, max_bytes=MAX_GRAPH_BYTES)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > min(MAX_GRAPH_BYTES, ratio_limit(len(content))):
            raise InputError(f"Expected {path} to have arrays of at most {in_units(MAX_GRAPH_BYTES)}, but got more.")
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            missing = [name for name in GraphArrays._fields if name not in stored.files]
            if missing:
                raise InputError(
                    f"Expected {path} to have the arrays {', '.join(GraphArrays._fields)}, but {missing[0]} is "
                    "missing. See docs/data.md for the format."
                )
            arrays = GraphArrays(*(stored[name] for name in GraphArrays._fields))
    except InputError:
        raise
    except (OSError, EOFError, ValueError, KeyError, MemoryError, NotImplementedError, zlib.error) as error:
        raise InputError(
            f"Expected {path} to be an .npz file of arrays, but got {reason_of(error)}. Make it again."
        ) from error
    except (zipfile.BadZipFile, RuntimeError) as error:  # the latter where an entry is encrypted
        raise InputError(
            f"Expected {path} to be an .npz file of arrays, but got {reason_of(error)}. Make it again."
        ) from error
    _check(path, arrays)
    return arrays


def _check(path: Path, arrays: GraphArrays) -> None:
    """Refuse arrays that do not fit together."""
    for name, array in arrays._asdict().items():
        if not np.issubdtype(array.dtype, np.integer) or array.dtype.itemsize > 8:
            raise InputError(f"Expected integers in {name} of {path}, but got {array.dtype}. Convert them.")
    expected = {
        "shape": (2,),
        "column": arrays.row.shape,
        "edge": (2, arrays.edge.shape[-1] if arrays.edge.ndim else 0),
    }
    for name, array in arrays._asdict().items():
        wanted = expected.get(name, (array.size,))
        if array.shape != wanted or (array.size == 0 and name not in {"row", "column"}):
            raise InputError(f"Expected {name} of {path} to have the shape {wanted}, but got {array.shape}. Mend it.")
    num_nodes, num_features = (int(number) for number in arrays.shape)
    if arrays.label.shape != (num_nodes,):
        raise InputError(
            f"Expected a label for each of {num_nodes} nodes in {path}, but got {len(arrays.label)}. Mend it."
        )
    limits = dict.fromkeys(("row", "edge", "train", "validation", "test"), num_nodes) | {"column": num_features}
    for name, limit in {**limits, "label": len(arrays.label)}.items():
        array = getattr(arrays, name)
        if array.size and not 0 <= int(array.min()) <= int(array.max()) < limit:
            raise InputError(
                f"Expected {name} of {path} to be in 0 … {limit - 1}, but got {int(array.min())} … "
                f"{int(array.max())}. Mend it."
            )
    nodes = np.concatenate([arrays.train, arrays.validation, arrays.test])
    if len(np.unique(nodes)) < len(nodes):
        raise InputError(f"Expected every node of {path} in one split at most, but got one in two. Mend the splits.")
