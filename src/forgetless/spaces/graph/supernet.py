"""The supernet of NAS-Bench-Graph."""

from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetless.data.graphs import GraphData
from forgetless.errors import InputError
from forgetless.spaces.graph import GraphArchitecture, GraphSpace
from forgetless.spaces.graph.canonical import NUM_NODES
from forgetless.spaces.graph.neighbours import Features, Hidden, Input, Neighbours
from forgetless.spaces.graph.operations import OPERATIONS, drawn
from forgetless.supernet import Supernet

Statistics = Literal["graph", "running"]


class GraphSupernet(Supernet[GraphArchitecture]):
    """The network of NAS-Bench-Graph (Qin et al. 2022, arXiv:2206.09166) for all 26,206 architectures at once.

    Features go through dropout to the nodes that read the input. A node that reads another one normalises it (batch
    normalisation over all nodes of the graph), takes ReLU and dropout, and applies its operation. The leaves are
    concatenated; ReLU, a linear layer, and a linear classifier follow, with nothing between the two.

    Each node has a normalisation and two sets of operations of its own, one for features and one for units, of which
    an architecture uses one operation. The layer after the leaves has a block of weights for each node. Skips that
    lead straight from the input hand on the features.

    **Normalisation.** A forward pass sees the whole graph, so that its mean and variance are exact and depend on no
    batch. With `statistics="graph"`, the default, they are taken anew in training and in eval mode, there without
    dropout: what is measured depends on the shared weights alone, and there is nothing to recalibrate. The benchmark
    has running means over training passes, `statistics="running"`, which fit one architecture only.

    Args:
        data: The graph, and the number of classes.
        units: D of each node.
        dropout: Share of features and units that are 0 in training.
        statistics: See above.
        num_leaves: From how many leaves the initial weights of the layer after them are scaled: ±1/√(leaves · D).

    Raises:
        InputError: If `units` is below 1 or `dropout` is not in [0, 1).
    """

    outside_cell: ClassVar[tuple[str, ...]] = ("after", "classifier")

    def __init__(
        self,
        data: GraphData,
        units: int = 256,
        *,
        dropout: float = 0.7,
        statistics: Statistics = "graph",
        num_leaves: int = 2,
    ) -> None:
        super().__init__()
        if units < 1 or not 0 <= dropout < 1:
            raise InputError(f"Expected units of at least 1 and dropout in [0, 1), but got {units} and {dropout}.")
        self.space, self.dropout, self.num_nodes = GraphSpace(), dropout, data.num_nodes
        self.features = Features(data.features, data.num_nodes, data.num_features)
        self.neighbours = Neighbours(data.edges, data.num_nodes)
        self.operations = nn.ModuleDict(
            {
                _key(node, name, is_raw=is_raw): operation(data.num_features if is_raw else units, units)
                for node in range(1, NUM_NODES + 1)
                for is_raw in (True, False)[: 1 + (node > 1)]  # the first node reads the input
                for name, operation in OPERATIONS.items()
            }
        )
        # The first node's is never used: it reads the input.
        self.norms = nn.ModuleDict(
            {
                str(node): nn.BatchNorm1d(units, track_running_stats=statistics == "running")
                for node in range(2, NUM_NODES + 1)
            }
        )
        fan_in = num_leaves * units
        self.after = nn.ParameterDict(
            {str(node): drawn((units, units), "uniform", fan_in) for node in range(1, NUM_NODES + 1)}
            | {"bias": drawn((units,), "uniform", fan_in)}
        )
        self.classifier = nn.Linear(units, data.num_classes)

    def forward(self, inputs: Tensor, architecture: GraphArchitecture) -> Tensor:
        """The logits of some nodes.

        Args:
            inputs: (B,) numbers of nodes.
            architecture: A member of the space.

        Returns:
            Logits (B, K).

        Raises:
            InputError: If the architecture is not a member.
        """
        self.space.encode(architecture)  # refuses strangers
        share = self.dropout if self.training else 0.0
        # Leaves are needed at the wanted nodes only. Where gradients of single nodes are mapped over (in eval mode,
        # with gradients), how many neighbours there are would differ between examples: there all are computed.
        whole = self.neighbours.at(None)
        some = whole if torch.is_grad_enabled() and not self.training else self.neighbours.at(inputs)
        values: list[Input | Tensor] = [self.features.dropped(share)]
        for node, (link, name) in enumerate(zip(architecture.links, architecture.operations, strict=True), 1):
            read = values[link]
            if isinstance(read, Tensor):
                read = F.dropout(F.relu(self.norms[str(node)](read)), share)
            sums = some if node in architecture.leaves else whole
            if name != "skip":
                operation = self.operations[_key(node, name, is_raw=not isinstance(read, Tensor))]
                read = operation(Hidden(read) if isinstance(read, Tensor) else read, sums)
            elif sums.nodes is not None and isinstance(read, Tensor):
                read = read[sums.nodes]
            values.append(read)
        found = self.after["bias"]
        for leaf in architecture.leaves:
            last = cast("Tensor", values[leaf])
            found = found + F.relu(last if some.nodes is not None else last[inputs]) @ self.after[str(leaf)]
        return cast("Tensor", self.classifier(found))

    def used_parameters(self, architecture: GraphArchitecture) -> dict[str, nn.Parameter]:
        """The weights that an architecture computes with.

        Args:
            architecture: A member of the space.

        Raises:
            InputError: If it is not a member.
        """
        self.space.encode(architecture)
        are_raw = architecture.are_raw
        used = {f"after.{leaf}" for leaf in architecture.leaves} | {"after.bias"}
        prefixes = ["classifier."]
        for node, (link, name) in enumerate(zip(architecture.links, architecture.operations, strict=True), 1):
            if not are_raw[link]:
                prefixes.append(f"norms.{node}.")
            if name != "skip":
                prefixes.append(f"operations.{_key(node, name, is_raw=are_raw[link])}.")
        begins = tuple(prefixes)
        return {name: weight for name, weight in self.named_parameters() if name in used or name.startswith(begins)}

    @staticmethod
    def memory_bytes(data: GraphData, units: int, *, copies: int = 4) -> int:
        """About how much memory training takes at most, in float32: `copies` of the weights, and a pass.

        Args:
            data: The graph.
            units: D.
            copies: Numbers kept per weight.

        Returns:
            Bytes, for the largest architecture.
        """
        with torch.device("meta"):
            sizes = {
                is_raw: sum(
                    weight.numel()
                    for operation in OPERATIONS.values()
                    for weight in operation(data.num_features if is_raw else units, units).parameters()
                )
                for is_raw in (True, False)
            }
        weights = NUM_NODES * sizes[True] + (NUM_NODES - 1) * (sizes[False] + 2 * units)
        weights += NUM_NODES * units**2 + units + (units + 1) * data.num_classes
        # A node keeps what it reads, normalised, cut off, dropped, multiplied and summed; attention also each edge's.
        per_node = (8 * data.num_nodes + 3 * (data.edges.shape[1] + data.num_nodes)) * units
        return 4 * (copies * weights + NUM_NODES * per_node + 6 * data.features.shape[1])


def _key(node: int, operation: str, *, is_raw: bool) -> str:
    return f"{node}_{'features' if is_raw else 'units'}_{operation}"


def parameters_of_table(supernet: GraphSupernet, architecture: GraphArchitecture) -> int:
    """The number of weights that the benchmark's table has, which counts some that nothing depends on.

    These are the normalisations of nodes that read the features, and a D × D matrix of each `arma`, for a second layer.

    Args:
        supernet: Of the benchmark's units.
        architecture: A member of the space.
    """
    used = sum(weight.numel() for weight in supernet.used_parameters(architecture).values())
    units = supernet.classifier.in_features
    num_raw = sum(architecture.are_raw[link] for link in architecture.links)
    return used + 2 * units * num_raw + units**2 * architecture.operations.count("arma")
