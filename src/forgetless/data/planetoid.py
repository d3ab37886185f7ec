"""Cora and Citeseer in the public split of Planetoid."""

from pathlib import Path

from forgetless.data.graph_files import read_arrays
from forgetless.data.graphs import GraphData, graph_data
from forgetless.data.sources import Source, fetch
from forgetless.errors import InputError

# No address: the original files are pickles, for which no checksum was published.
PLANETOID_FILES = {name: Source(paths=(f"planetoid/{name}.npz", f"{name}.npz")) for name in ("cora", "citeseer")}

_NAMES = {"cora": "Cora", "citeseer": "Citeseer"}

# Of the arrays, as `GraphArrays.digest`.
_DIGESTS = {
    "cora": "88d8215ad418722649b35cbdc06daef52104a162e3a86ebf4690456d558b61f4",
    "citeseer": "d46fd82493a2226c68f3971baec2109e97c30ecc545152c8eaf04bd27bc5959f",
}


def load_planetoid(name: str, data_dir: str | Path | None) -> GraphData:
    """Find a citation graph: words of each paper as binary features, citations as edges, subjects as classes.

    The features are raw, not divided by their number per node. The public split has 20 nodes per class for training,
    500 for validation and 1,000 for the test.

    Source: Yang, Cohen, Salakhutdinov, *Revisiting Semi-Supervised Learning with Graph Embeddings*, ICML 2016,
    arXiv:1603.08861 (Planetoid).

    Args:
        name: `cora` or `citeseer`.
        data_dir: The folder that has it, or None; see `forgetless.data.sources.fetch`. Nothing is downloaded.

    Returns:
        The graph; its importance split is cut from the nodes that are in no public split.

    Raises:
        InputError: If the file is missing, damaged or not of the published graph.
    """
    path = fetch(PLANETOID_FILES[name], data_dir)
    arrays = read_arrays(path)
    if (found := arrays.digest()) != _DIGESTS[name]:
        raise InputError(
            f"Expected {path} to have {_NAMES[name]} as Planetoid has it, with the checksum {_DIGESTS[name][:12]}…, "
            f"but got {found[:12]}…. Make it again; docs/data.md says how."
        )
    return graph_data(_NAMES[name], arrays)
