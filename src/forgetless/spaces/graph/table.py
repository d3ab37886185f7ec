"""The benchmark's table as a truth file: from a folder of data, or made from the installed package.

The package `nas-bench-graph` (PyPI, Apache licence) has one pickle per graph. Pickles may run code when they are read.
These are dicts of numbers, which need two globals, a numpy scalar and its type; here both are stand-ins that make
Python floats, and any other name in the file is refused.
"""

import contextlib
import importlib.util
import io
import pickle
import struct
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from forgetless.data.files import open_regular, write_atomically
from forgetless.data.sources import Source, cache_folder, fetch
from forgetless.errors import InputError
from forgetless.spaces.graph import GraphSpace
from forgetless.spaces.graph.canonical import GRAPH_LINKS, GRAPH_OPERATIONS

NAME = "nasbenchgraph"
"""What the table is called: `--truth nasbenchgraph`."""

PACKAGE, VERSION = "nas-bench-graph", "1.4.0"

GRAPHS = ("cora", "citeseer", "pubmed", "cs", "physics", "photo", "computers", "arxiv")
"""Graphs that have a value for each architecture; `proteins`, with five of the operations, is left out."""

WITH_PARAMETERS = ("cora", "citeseer")

_FILE = Source(paths=(f"{NAME}.csv",))


def path() -> Path:
    """Where the table lies as a file of comma-separated values.

    Returns:
        `nasbenchgraph.csv` in a folder of data (`forgetless.data.sources.search_folders`), or else in the cache, where
        it is written from the installed package.

    Raises:
        InputError: If there is neither.
    """
    with contextlib.suppress(InputError):
        return fetch(_FILE, None)
    folder = _package()
    if folder is None:
        raise InputError(
            f"Expected {NAME}.csv in a folder of data or the package {PACKAGE} {VERSION}, but got neither. Install it "
            f"with pip, or name the file."
        )
    found = cache_folder() / f"{NAME}.csv"
    write_atomically(found, lambda stream: stream.writelines(line.encode() for line in lines(folder)))
    return found


def _package() -> Path | None:
    """The folder of the installed package's tables; None if it, or this version of it, is not installed."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        spec = importlib.util.find_spec("nas_bench_graph")  # finds it without running any of it
        if spec is not None and spec.origin and metadata.version(PACKAGE) == VERSION:
            return Path(spec.origin).parent / "light"
    return None


def lines(folder: Path) -> Iterator[str]:
    """The table, line by line: accuracies in per cent, parameters in millions.

    Args:
        folder: With one `<graph>.bench` for each of `GRAPHS`.

    Yields:
        A header, and a line for each architecture, in the order of decisions.

    Raises:
        InputError: If a file is missing or damaged, or has something else than numbers.
    """
    tables = {graph: read_pickle(folder / f"{graph}.bench") for graph in GRAPHS}
    columns = [f"{graph}_{split}" for graph in GRAPHS for split in ("valid", "test")]
    yield ",".join(["arch", *columns, *(f"params_{graph}" for graph in WITH_PARAMETERS)]) + "\n"
    for architecture in GraphSpace():
        number = _number(architecture.links, architecture.operations)
        try:
            rows = {graph: table[number] for graph, table in tables.items()}
            cells = [f"{100 * rows[graph][key]:.2f}" for graph in GRAPHS for key in ("valid_perf", "perf")]
            cells += [f"{rows[graph]['para']:.6f}" for graph in WITH_PARAMETERS]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"Expected numbers for {architecture} in {folder}, but got none. Install {PACKAGE} {VERSION} again."
            ) from error
        yield f'"{architecture}",{",".join(cells)}\n'


def _number(links: tuple[int, ...], operations: tuple[str, ...]) -> int:
    """The key of an architecture in the package: the number of its tree, then of each operation, in base 10."""
    digits = (GRAPH_LINKS.index(links), *map(GRAPH_OPERATIONS.index, operations))
    return int("".join(map(str, digits)))


class _Numbers(pickle.Unpickler):
    """Reads dicts of numbers, and refuses every other class and function."""

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for the two that the tables need."""
        if (module, name) == ("numpy", "dtype"):
            return _Double
        if module in {"numpy.core.multiarray", "numpy._core.multiarray"} and name == "scalar":
            return _double
        raise pickle.UnpicklingError(f"it has {module}.{name}")


class _Double:
    """In the place of numpy's type of an 8-byte float, whose byte order its state begins with."""

    def __init__(self, code: str, *_: object) -> None:
        if code != "f8":
            raise pickle.UnpicklingError(f"it has numbers of type {code}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if tuple(state[1:2]) != ("<",):
            raise pickle.UnpicklingError("it has numbers in another byte order")


def _double(_: _Double, content: bytes) -> float:
    return float(struct.unpack("<d", content)[0])


def read_pickle(file: Path) -> dict[int, dict[str, float]]:
    """Read one table of the package.

    Args:
        file: Such as `cora.bench`.

    Returns:
        Number of an architecture → its values by name.

    Raises:
        InputError: If the file is missing or damaged, or has something else than dicts of numbers.
    """
    with open_regular(file) as stream:
        content = stream.read()
    try:
        found = _Numbers(io.BytesIO(content)).load()
        if type(found) is not dict:
            raise pickle.UnpicklingError(f"it has a {type(found).__name__}")
    except Exception as error:  # a damaged pickle raises anything
        reason = str(error) or type(error).__name__
        raise InputError(
            f"Expected {file} to be a table of numbers, but got {reason}. Install {PACKAGE} {VERSION} again."
        ) from error
    return found
