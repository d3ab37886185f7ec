"""Nodes of a graph to classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from forgetless.data.named import GRAPH_DATA
from forgetless.registry import Registry
from forgetless.tasks._classification import Classification
from forgetless.tasks.base import TASKS, SplitName, TaskOptions, sha256_of

if TYPE_CHECKING:
    import torch

    from forgetless.data.graphs import GraphData
    from forgetless.tasks.base import Batch

# In a batch of `NodeClassification.batches`.
_EVALUATION_NODES = 1000


@dataclass(frozen=True, kw_only=True)
class GraphTaskOptions(TaskOptions):
    """Options of node classification; it has none."""


@TASKS.register
class NodeClassification(Classification):
    """Nodes of one graph to classes, with cross entropy as the loss and 1 − accuracy as the error.

    The model holds the graph, whose nodes and edges it always sees whole; it is called with the numbers of the nodes
    whose classes are wanted. An example is one node's label, and a batch is some nodes of the training split. With a
    batch as large as the split, training is by full batches, as usual on graphs.

    Args:
        data: The graph, with disjoint splits of its nodes.
        batch_size: Labelled nodes per training batch, at most all there are.
        device: Where labels and node numbers are kept.
    """

    name: ClassVar[str] = "graphs"
    Options: ClassVar[type[TaskOptions]] = GraphTaskOptions
    data_sets: ClassVar[Registry[Any]] = GRAPH_DATA
    default_data: ClassVar[str] = "cora"
    fits_like: ClassVar[str | None] = "images"
    error_unit: ClassVar[str] = "fraction of nodes"
    data: GraphData

    def __init__(self, data: GraphData, batch_size: int, device: torch.device | str = "cpu") -> None:
        self.data = data
        self.batch_size = min(batch_size, len(data.train))
        half = len(data.validation) // 2
        nodes = {
            "train": data.train,
            "importance": data.importance,
            "validation": data.validation,
            "reward": data.validation[:half],
            "forgetting": data.validation[half:],
            "test": data.test,
        }
        self._nodes = {name: numbers.to(device) for name, numbers in nodes.items()}
        self._labels = data.labels.to(device)

    @classmethod
    def load(
        cls,
        data: str,
        data_dir: str | Path | None,
        options: Any,  # noqa: ARG003
        *,
        batch_size: int,
        device: torch.device | str,
    ) -> Self:
        """A graph by name or path; see `forgetless.data.load_graph`."""
        from forgetless.data.graphs import load_graph

        return cls(load_graph(data, data_dir), batch_size, device)

    @property
    def has_one_batch(self) -> bool:
        """Whether a batch has all training nodes."""
        return self.batch_size == len(self.data.train)

    def training_batches(self, num_batches: int, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """Shuffled passes over the training nodes; the last incomplete batch of a pass is dropped.

        Args:
            num_batches: How many batches.
            generator: Draws the order of each pass (on the CPU).
            start: How many batches to pass over.

        Yields:
            Node numbers (batch,) and labels (batch,).
        """
        import torch

        nodes = self._nodes["train"]
        per_pass = len(nodes) // self.batch_size
        for number in range(start + num_batches):
            place = number % per_pass
            if place == 0:
                order = torch.randperm(len(nodes), generator=generator).to(nodes.device)
            if number >= start:
                chosen = nodes[order[place * self.batch_size : (place + 1) * self.batch_size]]
                yield chosen, self._labels[chosen]

    def batches(self, split: SplitName) -> Iterator[Batch]:
        """One pass over a split in its own order, 1,000 nodes at a time.

        Args:
            split: Its name.

        Yields:
            Node numbers and labels.
        """
        import torch

        for nodes in torch.split(self._nodes[split], _EVALUATION_NODES):
            yield nodes, self._labels[nodes]

    def digest(self) -> str:
        """SHA-256 of features, edges, labels and all splits."""
        graph = {"features": self.data.features, "edges": self.data.edges, "labels": self.data.labels}
        return sha256_of(graph | {f"{name} nodes": nodes for name, nodes in self._nodes.items()})
