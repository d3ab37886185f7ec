"""Layered drawings of directed graphs: in what order, and at what height, the points of each layer stand."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import isotonic_regression

if TYPE_CHECKING:
    import networkx as nx

_SWEEPS = 8


def heights(layers: Mapping[str, int], arrows: Iterable[tuple[str, str]]) -> dict[str, float]:
    """A height for every point of a graph whose arrows each go from one layer to the next.

    The barycentre method of Sugiyama, Tagawa and Toda (1981, IEEE Transactions on Systems, Man, and Cybernetics
    11(2)): every layer is ordered by the mean height of its neighbours in the layer before, then in that after, and so
    on; of all orders that come by, the one with the fewest crossings is taken. Then points move towards their
    neighbours, within their order and at least 1 apart.

    Args:
        layers: Point → its layer, from 0.
        arrows: Pairs of points, of one layer and the next.

    Returns:
        Point → height.

    >>> layers = {"a": 0, "b": 0, "c": 1, "d": 1}
    >>> found = heights(layers, [("a", "d"), ("b", "c")])
    >>> (found["a"] < found["b"]) == (found["d"] < found["c"])
    True
    """
    import networkx as nx

    graph = nx.DiGraph(arrows)
    graph.add_nodes_from(layers)
    columns: list[list[str]] = [[] for _ in range(max(layers.values(), default=-1) + 1)]
    for point, layer in layers.items():
        columns[layer].append(point)
    height = {point: i - (len(points) - 1) / 2 for points in columns for i, point in enumerate(points)}
    best, fewest = dict(height), num_crossings(layers, graph.edges, height)
    for sweep in range(_SWEEPS):
        is_forwards = sweep % 2 == 0
        for points in columns if is_forwards else reversed(columns):
            beside = {p: list(graph.pred[p] if is_forwards else graph.succ[p]) or [p] for p in points}
            points.sort(key=lambda p: sum(height[q] for q in beside[p]) / len(beside[p]))
            height |= {point: i - (len(points) - 1) / 2 for i, point in enumerate(points)}
        if (found := num_crossings(layers, graph.edges, height)) < fewest:
            best, fewest = dict(height), found
    return _straightened(columns, graph, best)


def num_crossings(layers: Mapping[str, int], arrows: Iterable[tuple[str, str]], height: Mapping[str, float]) -> int:
    """How many pairs of arrows cross.

    Args:
        layers: Point → its layer.
        arrows: Pairs of points, of one layer and the next.
        height: Point → its height.
    """
    by_layer: dict[int, list[tuple[float, float]]] = {}
    for source, target in arrows:
        by_layer.setdefault(layers[source], []).append((height[source], height[target]))
    return sum(
        (a - c) * (b - d) < 0 for pairs in by_layer.values() for (a, b), (c, d) in itertools.combinations(pairs, 2)
    )


def _straightened(columns: Sequence[list[str]], graph: "nx.DiGraph[str]", height: dict[str, float]) -> dict[str, float]:
    """Points nearer to their neighbours."""
    for _ in range(_SWEEPS):
        for points in columns:
            points.sort(key=height.__getitem__)
            wanted = [np.mean([height[q] for q in (*graph.pred[p], *graph.succ[p])] or [height[p]]) for p in points]
            # The least squares fit of a sequence that rises by 1 or more (Barlow et al. 1972).
            rise = np.arange(len(points))
            height |= zip(points, map(float, isotonic_regression(np.asarray(wanted) - rise).x + rise), strict=True)
    return height
