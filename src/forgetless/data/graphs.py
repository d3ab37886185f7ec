"""One graph whose nodes are to be classified: binary features, edges, and four disjoint splits of its nodes.

All nodes and edges are seen in training; a split says whose labels are used, and for what.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from forgetless.data.graph_files import GraphArrays, read_arrays
from forgetless.data.named import GRAPH_DATA
from forgetless.data.sources import existing_path
from forgetless.data.splits import stratified_cut
from forgetless.errors import InputError, printable

__all__ = ["GraphData", "graph_data", "load_graph"]


@dataclass(frozen=True, eq=False)
class GraphData:
    """A graph in four splits that share no node.

    Attributes:
        name: What tables call it.
        num_features: F, of each node.
        features: (2, M) node and number of each feature that is 1, sorted by node; the others are 0.
        edges: (2, E) source and target, sorted by target and then source; each edge in both directions, no loops.
        labels: (N,) the class of each node, 0 … K − 1.
        train: Nodes for training weights.
        importance: Nodes for the Fisher only.
        validation: Nodes for rewards, for stopping and for choosing settings.
        test: Nodes for the numbers that are reported, and nothing else.
    """

    name: str
    num_features: int
    features: Tensor
    edges: Tensor
    labels: Tensor
    train: Tensor
    importance: Tensor
    validation: Tensor
    test: Tensor

    @property
    def num_nodes(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.labels.max()) + 1


def graph_data(name: str, arrays: GraphArrays) -> GraphData:
    """A graph from arrays, with the importance split drawn from the nodes that are in no other split.

    As many nodes are drawn as there are for training, each class with its share, the same in every run. Their labels
    train nothing, but are more labels than the public split gives: see docs/data.md.

    Args:
        name: What it is called.
        arrays: What was read.

    Returns:
        The graph, its edges in both directions without loops.

    Raises:
        InputError: If fewer nodes than classes are in no split.
    """
    labels = arrays.label.astype(np.int64)
    used = np.concatenate([arrays.train, arrays.validation, arrays.test]).astype(np.int64)
    rest = np.setdiff1d(np.arange(len(labels)), used)
    num_classes = int(labels.max()) + 1
    if len(rest) < num_classes:
        raise InputError(
            f"Expected at least {num_classes} nodes of {name} in no split, for the Fisher, but got {len(rest)}. Leave "
            "some out of train, validation and test."
        )
    _, drawn = stratified_cut(labels[rest], min(len(arrays.train), len(rest) // 2), "importance")
    features = np.unique(np.stack([arrays.row, arrays.column]).astype(np.int64), axis=1)
    return GraphData(
        name=printable(name),
        num_features=int(arrays.shape[1]),
        features=torch.from_numpy(features),
        edges=torch.from_numpy(_both_ways(arrays.edge.astype(np.int64))),
        labels=torch.from_numpy(labels),
        train=_nodes(arrays.train),
        importance=_nodes(rest[drawn]),
        validation=_nodes(arrays.validation),
        test=_nodes(arrays.test),
    )


def _nodes(numbers: npt.NDArray[np.integer]) -> Tensor:
    return torch.from_numpy(numbers.astype(np.int64))


def _both_ways(edges: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Each edge once in each direction, without loops, sorted by target and then source."""
    both = np.concatenate([edges, edges[::-1]], axis=1)
    both = np.unique(both[::-1, both[0] != both[1]], axis=1)  # (target, source), so that targets are sorted first
    return np.ascontiguousarray(both[::-1])


def load_graph(name: str, data_dir: str | Path | None = None) -> GraphData:
    """Load a graph by name or path.

    | name | nodes | classes | train | importance | validation | test |
    |---|---|---|---|---|---|---|
    | `cora` | 2,708 | 7 | 140 | 140 | 500 | 1,000 |
    | `citeseer` | 3,327 | 6 | 120 | 120 | 500 | 1,000 |

    Args:
        name: `cora`, `citeseer`, or the path of an `.npz` file of the same arrays; see `graph_files`.
        data_dir: The folder that has the named data set.

    Returns:
        The graph. Every call gives the same.

    Raises:
        InputError: If the name is unknown, the file is missing, damaged or too large, or an array does not fit.

    >>> load_graph("coral")
    Traceback (most recent call last):
    forgetless.errors.InputError: Expected a graph ... but got 'coral'. Did you mean 'cora'?
    """
    if name in GRAPH_DATA:
        return GRAPH_DATA[name](data_dir)
    path = existing_path(name, "a graph (or the path of an .npz file of one)", GRAPH_DATA)
    return graph_data(path.stem, read_arrays(path))
