"""A small graph for tests, as data, as a dense matrix and as a file."""

import numpy as np
import torch

from forgetless.data.graph_files import GraphArrays
from forgetless.data.graphs import graph_data

NUM_NODES, NUM_FEATURES, NUM_CLASSES = 60, 11, 3


def arrays(num_nodes=NUM_NODES, num_classes=NUM_CLASSES):
    """A random graph whose classes have features and neighbours of their own; the last node has no neighbour."""
    dice = np.random.default_rng(0)
    label = np.arange(num_nodes) % num_classes
    prefers = np.arange(NUM_FEATURES)[None] % num_classes == label[:, None]
    row, column = np.nonzero(dice.random((num_nodes, NUM_FEATURES)) < np.where(prefers, 0.5, 0.1))
    alike = label[:, None] == label[None]
    chosen = np.triu(dice.random((num_nodes, num_nodes)) < np.where(alike, 0.12, 0.02), k=1)
    chosen[:, -1] = False
    parts = np.split(dice.permutation(num_nodes), [num_nodes // 5, 2 * num_nodes // 5, 3 * num_nodes // 5])
    return GraphArrays(
        np.array([num_nodes, NUM_FEATURES]), row, column, label, np.stack(np.nonzero(chosen)), *parts[:3]
    )


def small_graph(**changes):
    """As data."""
    return graph_data("made up", arrays()._replace(**changes))


def dense(data):
    """Features (N, F) and adjacency (N, N) in float64."""
    features = torch.zeros(data.num_nodes, data.num_features, dtype=torch.double)
    features[data.features[0], data.features[1]] = 1
    adjacency = torch.zeros(data.num_nodes, data.num_nodes, dtype=torch.double)
    adjacency[data.edges[1], data.edges[0]] = 1
    return features, adjacency


def written(folder, **changes):
    """As a file; returns its path."""
    path = folder / "small.npz"
    np.savez_compressed(path, **arrays()._replace(**changes)._asdict())
    return path
