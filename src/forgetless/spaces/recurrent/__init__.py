"""The ENAS recurrent cell: N nodes, each of which reads an earlier one, `tanh(0) relu(1) sigmoid(1)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from forgetless.errors import InputError
from forgetless.spaces.base import (
    SPACES,
    Architecture,
    Edge,
    Scanner,
    SearchSpace,
    Space,
    SpaceOptions,
    expect_at_least_one,
    expect_count,
    expect_subset,
)

if TYPE_CHECKING:
    from forgetless.supernet import Supernet

ACTIVATIONS = ("tanh", "relu", "identity", "sigmoid")


class RecurrentNode(NamedTuple):
    """One node of a recurrent cell: which node it reads, and its activation function."""

    predecessor: int
    activation: str


@dataclass(frozen=True)
class RecurrentArchitecture(Architecture):
    """A recurrent cell: `nodes[k − 1]` is node k, which reads a node before it; node 0 mixes input and state.

    Args:
        nodes: Pairs (predecessor, activation); the predecessor of node k lies in 0 … k − 1.

    Raises:
        InputError: If a node reads itself or a later node.

    >>> cell = RecurrentArchitecture((RecurrentNode(0, "tanh"), RecurrentNode(1, "relu"), RecurrentNode(1, "tanh")))
    >>> print(cell, cell.loose_ends)
    tanh(0) relu(1) tanh(1) (2, 3)
    """

    nodes: tuple[RecurrentNode, ...]

    def __post_init__(self) -> None:
        for index, node in enumerate(self.nodes, 1):
            if not 0 <= node.predecessor < index:
                raise InputError(
                    f"Expected node {index} to read one of the nodes 0 … {index - 1}, but got {node.predecessor}. "
                    "A node reads an earlier node."
                )

    functions_in_nodes: ClassVar[bool] = True

    def __str__(self) -> str:
        return " ".join(f"{node.activation}({node.predecessor})" for node in self.nodes)

    @property
    def loose_ends(self) -> tuple[int, ...]:
        """The nodes that no other node reads, in order; their mean is the cell's output. Never node 0."""
        read = {node.predecessor for node in self.nodes}
        return tuple(index for index in range(len(self.nodes) + 1) if index not in read)

    def graphs(self) -> dict[str, tuple[Edge, ...]]:
        """One cell: x (input) and h (previous state) into node 0, nodes, and loose ends into the new state h'."""
        arrows = [Edge("x", "0", "tanh"), Edge("h", "0", "tanh")]
        arrows += [Edge(str(node.predecessor), str(index), node.activation) for index, node in enumerate(self.nodes, 1)]
        arrows += [Edge(str(index), "h'", "mean") for index in self.loose_ends]
        return {"cell": tuple(arrows)}


@dataclass(frozen=True)
class RecurrentSpace(Space[RecurrentArchitecture]):
    """The ENAS recurrent cell (Pham et al. 2018, arXiv:1802.03268, section 2.1): A^N · N! cells.

    Node 0 is fixed: the gated mix, by tanh, of the cell's input and its previous state. Each of the nodes 1 … N
    picks a node before it (node k has k options) and one of A activations. With four activations that is the
    4^N · N! of the paper, e.g. 4³ · 3! = 384 for N = 3. (The code released with the paper counts node 0 among its N
    and lets it pick its activation, 4^N · (N − 1)!: its N nodes are N − 1 here.)

    Decisions come in the controller's order: for each node its predecessor, then its activation.

    Args:
        num_nodes: N, the nodes besides node 0; at least 1.
        activations: Those to choose from, out of tanh, relu, identity, sigmoid.

    Raises:
        InputError: If `num_nodes` is below 1, or `activations` are unknown, repeated or missing.

    >>> space = RecurrentSpace(3)
    >>> space.size, space.num_choices
    (384, (1, 4, 2, 4, 3, 4))
    >>> cell = space.parse("tanh(0) relu(1) sigmoid(1)")
    >>> space.encode(cell), cell.loose_ends
    ((0, 0, 1, 1, 1, 3), (2, 3))
    >>> space.parse("tanh(0) rel(1) sigmoid(1)")
    Traceback (most recent call last):
    forgetless.errors.InputError: Expected an activation (tanh, relu, identity, sigmoid) at position 8 of \
'tanh(0) rel(1) sigmoid(1)', but got 'rel'. Did you mean 'relu'?
    """

    num_nodes: int
    activations: tuple[str, ...] = ACTIVATIONS

    def __post_init__(self) -> None:
        expect_at_least_one("nodes in a recurrent cell", self.num_nodes)
        expect_subset("activation", self.activations, ACTIVATIONS)

    @cached_property
    def num_choices(self) -> tuple[int, ...]:
        """For each node k = 1 … N: k predecessors, then A activations."""
        return tuple(options for index in range(1, self.num_nodes + 1) for options in (index, len(self.activations)))

    def parse(self, text: str) -> RecurrentArchitecture:
        """Read a cell such as `tanh(0) relu(1)`: for each node its activation and, in brackets, the node it reads.

        Args:
            text: One word per node.

        Raises:
            InputError: With the position of the first mistake.
        """
        scanner = Scanner(text)
        nodes = []
        for index in range(1, self.num_nodes + 1):
            scanner.skip_spaces()
            if scanner.at_end:
                scanner.fail(f"node {index} of {self.num_nodes}, such as '{self.activations[0]}(0)'")
            activation, predecessor = scanner.call("an activation", self.activations, index)
            nodes.append(RecurrentNode(predecessor, activation))
        scanner.end(f"the end after {self.num_nodes} nodes")
        return RecurrentArchitecture(tuple(nodes))

    @property
    def has_canonical_form(self) -> bool:
        """A cell is a tree, whose nodes may be numbered in other ways."""
        return True

    def canonical_form(self, architecture: RecurrentArchitecture) -> str:
        """The tree with each node's readers in alphabetical order, such as `(relu(tanh),sigmoid)`.

        Args:
            architecture: A member of this space.

        >>> space = RecurrentSpace(3)
        >>> [space.canonical_form(space.parse(cell)) for cell in ("tanh(0) relu(0) relu(1)", "relu(0) tanh(0) relu(2)")]
        ['(relu,tanh(relu))', '(relu,tanh(relu))']
        """
        readers: dict[int, list[str]] = {}
        for index in range(len(architecture.nodes), 0, -1):  # the readers of a node come after it
            node = architecture.nodes[index - 1]
            readers.setdefault(node.predecessor, []).append(node.activation + _bracket(readers.get(index)))
        return _bracket(readers.get(0))

    def _encode(self, architecture: RecurrentArchitecture) -> tuple[int, ...]:
        expect_count("nodes", architecture.nodes, self.num_nodes)
        return tuple(
            decision
            for node in architecture.nodes
            for decision in (node.predecessor, self.activations.index(node.activation))
        )

    def _decode(self, decisions: tuple[int, ...]) -> RecurrentArchitecture:
        pairs = zip(decisions[::2], decisions[1::2], strict=True)
        return RecurrentArchitecture(
            tuple(RecurrentNode(predecessor, self.activations[activation]) for predecessor, activation in pairs)
        )


def _bracket(readers: list[str] | None) -> str:
    return f"({','.join(sorted(readers))})" if readers else ""


@dataclass(frozen=True, kw_only=True)
class RecurrentOptions(SpaceOptions):
    """Options of recurrent cells and their supernet.

    Attributes:
        nodes: Nodes of a cell, besides the one that mixes input and state.
        operations: Activations that a node may have; all if None.
        units: Units of the cell, and length of the embedded words.
        dropout: Of the embedded words and of the output of the cell, one mask per sequence.
        weight_drop: Probability that a single weight of the cell is dropped.
    """

    nodes: int = 4
    operations: tuple[str, ...] | None = None
    units: int = 32
    dropout: float = 0.0
    weight_drop: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(1, "nodes", "units")
        self.expect_below_1("dropout", "weight_drop")
        expect_subset("operation", self.operations, ACTIVATIONS)


@SPACES.register
class RecurrentSearchSpace(SearchSpace):
    """The ENAS recurrent cell on text: 4^N · N! cells, one recurrent layer between tied embedding and decoder.

    Source: Pham et al. 2018, arXiv:1802.03268, section 2.1; see `RecurrentSpace` and `supernet.RecurrentSupernet`.
    """

    name: ClassVar[str] = "recurrent"
    label: ClassVar[str] = "recurrent cells"
    Options: ClassVar[type[SpaceOptions]] = RecurrentOptions
    task: ClassVar[str] = "text"
    training: ClassVar[Mapping[str, Any]] = {
        "learning_rate": {"sgd": 10.0},
        "momentum": 0.0,
        "max_gradient_norm": 0.25,
    }
    reading: ClassVar[str] = "x is the word, h the state before, h' the new state, the mean of what no node reads."
    options: RecurrentOptions

    @cached_property
    def space(self) -> RecurrentSpace:
        """Of as many nodes as asked for."""
        return RecurrentSpace(self.options.nodes, self.options.operations or ACTIVATIONS)

    def make_supernet(self, task: Any) -> Supernet[Any]:
        """One recurrent layer.

        Args:
            task: Decides the vocabulary.
        """
        from forgetless.spaces.recurrent.supernet import RecurrentSupernet

        o = self.options
        return RecurrentSupernet(
            task.num_words,
            o.units,
            self.space,
            dropout_input=o.dropout,
            dropout_output=o.dropout,
            weight_drop=o.weight_drop,
        )

    def memory_bytes(self, task: Any, copies: int) -> int:
        """Weights, and the activations of a batch.

        Args:
            task: Decides vocabulary and batch.
            copies: Numbers kept per weight.

        Returns:
            Bytes.
        """
        from forgetless.spaces.recurrent.supernet import RecurrentSupernet

        sizes = (task.num_words, self.options.units, self.space, task.batch_size, task.num_steps)
        return RecurrentSupernet.memory_bytes(*sizes, copies=copies)

    @property
    def size(self) -> str:
        """Nodes and units."""
        return f"{self.options.nodes} nodes of {self.options.units} units"

    @classmethod
    def like(cls, text: str) -> RecurrentSpace:
        """Of as many nodes as the text has brackets."""
        return RecurrentSpace(max(1, text.count("(")))
