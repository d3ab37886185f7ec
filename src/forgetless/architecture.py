"""What a search chooses from: architectures, and the spaces that hold them.

An architecture is a frozen, hashable value that prints as one line of text and is read back by its space's `parse`.
A space is a fixed sequence of decisions, each with its own number of options; an architecture is one option per
decision. That is all that a strategy needs to know: a controller emits decisions in order, evolution changes one of
them, uniform sampling draws each of them. `size` counts sequences of decisions: two architectures that compute the
same function in different notation (an isomorphic graph, a node that does nothing) are two.

| space | source | architectures | written as |
|---|---|---|---|
| `RecurrentSpace` | ENAS recurrent cell | 4^N · N! | `tanh(0) relu(1) sigmoid(1)` |
| `CellSpace` | ENAS micro space | (Π_b (b+2)² · 5²)² | `normal: identity(0)+avg_pool_3x3(1) reduction: …` |
| `Nas201Space` | NAS-Bench-201 | 5⁶ = 15,625 | the benchmark's strings |
"""

import difflib
import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, NamedTuple, NoReturn, TypeVar

import torch

from forgetless.errors import InputError, expect_one_of

ACTIVATIONS = ("tanh", "relu", "identity", "sigmoid")
CELL_OPERATIONS = ("identity", "sep_conv_3x3", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3")
NAS201_OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")

# Edges (source node, target node) of the NAS-Bench-201 cell, in the order of its strings.
NAS201_EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


class Edge(NamedTuple):
    """One arrow of a drawn cell: from node, to node, and what happens on the way."""

    source: str
    target: str
    label: str


class Architecture(ABC):
    """One member of a space: frozen, hashable; `str()` prints it and the space's `parse` reads it back."""

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def graphs(self) -> dict[str, tuple[Edge, ...]]:
        """The cells to draw, by name; each as its arrows, in topological order."""


A = TypeVar("A", bound=Architecture)


class Space(ABC, Generic[A]):
    """A finite set of architectures, as a fixed sequence of decisions with a number of options each.

    Position d of `encode(a)` lies in 0 … `num_choices[d]` − 1, every such sequence is an architecture, and
    `decode(encode(a)) == a`, `parse(str(a)) == a`. Iterating yields every architecture once, in lexicographic order
    of decisions; look at `size` before.
    """

    @property
    @abstractmethod
    def num_choices(self) -> tuple[int, ...]:
        """How many options each decision has."""

    @abstractmethod
    def parse(self, text: str) -> A:
        """Read an architecture back from `str(architecture)`; spaces around and between the parts are ignored.

        Args:
            text: What `str` printed, or what a person typed.

        Raises:
            InputError: If the text is not an architecture of this space: where (0-based) and what was expected there.
        """

    @abstractmethod
    def _encode(self, architecture: A) -> tuple[int, ...]:
        """The decisions; raises ValueError or TypeError (with a reason) for an architecture of another space."""

    @abstractmethod
    def _decode(self, decisions: tuple[int, ...]) -> A:
        """The architecture of decisions that are known to be in range."""

    @cached_property
    def size(self) -> int:
        """The number of architectures, Π_d num_choices[d]."""
        return math.prod(self.num_choices)

    def __iter__(self) -> Iterator[A]:
        return map(self._decode, itertools.product(*map(range, self.num_choices)))

    def __contains__(self, architecture: object) -> bool:
        try:
            self.encode(architecture)  # type: ignore[arg-type]
        except InputError:
            return False
        return True

    def encode(self, architecture: A) -> tuple[int, ...]:
        """The architecture as one integer per decision.

        Args:
            architecture: A member of this space.

        Raises:
            InputError: If it is not a member.
        """
        try:
            return self._encode(architecture)
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"Expected an architecture of {self}, but got {str(architecture)!r}: {error}. Draw it from this space."
            ) from error

    def decode(self, decisions: Sequence[int]) -> A:
        """The architecture of a sequence of decisions; the inverse of `encode`.

        Args:
            decisions: One integer per decision, 0 … num_choices − 1 each.

        Raises:
            InputError: If there are too few or too many, or one is out of range.
        """
        if len(decisions) != len(self.num_choices):
            raise InputError(
                f"Expected {len(self.num_choices)} decisions for {self}, but got {len(decisions)}. Give one per "
                "position of num_choices."
            )
        for position, (decision, options) in enumerate(zip(decisions, self.num_choices, strict=True)):
            if not 0 <= decision < options:
                raise InputError(
                    f"Expected decision {position} of {self} to be in 0 … {options - 1}, but got {decision}. "
                    "See num_choices for the options of each position."
                )
        return self._decode(tuple(int(decision) for decision in decisions))

    def sample(self, generator: torch.Generator) -> A:
        """An architecture drawn uniformly: every one with probability 1/size.

        Args:
            generator: The source of randomness, on the CPU.
        """
        return self._decode(tuple(_below(options, generator) for options in self.num_choices))

    def mutate(self, architecture: A, generator: torch.Generator) -> A:
        """A neighbour: one decision, drawn uniformly, takes another of its options, drawn uniformly.

        Decisions with a single option are left out, so that the result always differs from `architecture`.

        Args:
            architecture: A member of this space.
            generator: The source of randomness, on the CPU.

        Raises:
            InputError: If `architecture` is not in this space, or is the only one in it.
        """
        decisions = list(self.encode(architecture))
        free = [position for position, options in enumerate(self.num_choices) if options > 1]
        if not free:
            raise InputError(
                f"Expected a space with at least two architectures to mutate in, but got {self}. Enlarge the space."
            )
        position = free[_below(len(free), generator)]
        options = self.num_choices[position]
        decisions[position] = (decisions[position] + 1 + _below(options - 1, generator)) % options
        return self._decode(tuple(decisions))


def _below(limit: int, generator: torch.Generator) -> int:
    """An integer drawn uniformly from 0 … limit − 1."""
    return int(torch.randint(limit, (), generator=generator))


# ---- the recurrent cell ------------------------------------------------------------------------------------------


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
        _expect_at_least_one("nodes in a recurrent cell", self.num_nodes)
        _expect_subset("activation", self.activations, ACTIVATIONS)

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
        scanner = _Scanner(text)
        nodes = []
        for index in range(1, self.num_nodes + 1):
            scanner.skip_spaces()
            if scanner.at_end:
                scanner.fail(f"node {index} of {self.num_nodes}, such as '{self.activations[0]}(0)'")
            activation, predecessor = scanner.call("an activation", self.activations, index)
            nodes.append(RecurrentNode(predecessor, activation))
        scanner.end(f"the end after {self.num_nodes} nodes")
        return RecurrentArchitecture(tuple(nodes))

    def _encode(self, architecture: RecurrentArchitecture) -> tuple[int, ...]:
        _expect_count("nodes", architecture.nodes, self.num_nodes)
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


# ---- the ENAS micro space ----------------------------------------------------------------------------------------


class CellNode(NamedTuple):
    """One block of a convolutional cell: the sum of two operations, each on one input."""

    inputs: tuple[int, int]
    operations: tuple[str, str]


@dataclass(frozen=True)
class CellArchitecture(Architecture):
    """A normal and a reduction cell of B blocks each.

    Within a cell, 0 is the output of the cell before the last, 1 that of the last cell, and b + 2 is block b; block b
    reads two of 0 … b + 1, possibly the same one twice.

    Args:
        normal: The blocks of the cells that keep the image size.
        reduction: The blocks of the cells that halve it; as many.

    Raises:
        InputError: If a block reads itself or a later one, or the cells differ in their number of blocks.

    >>> block = CellNode((0, 1), ("identity", "avg_pool_3x3"))
    >>> print(CellArchitecture((block,), (block,)))
    normal: identity(0)+avg_pool_3x3(1) reduction: identity(0)+avg_pool_3x3(1)
    """

    normal: tuple[CellNode, ...]
    reduction: tuple[CellNode, ...]

    def __post_init__(self) -> None:
        if len(self.normal) != len(self.reduction):
            raise InputError(
                f"Expected a reduction cell of {len(self.normal)} blocks, like the normal cell, but got "
                f"{len(self.reduction)}. Give both cells as many blocks."
            )
        for blocks in (self.normal, self.reduction):
            for index, block in enumerate(blocks):
                if not all(0 <= source < index + 2 for source in block.inputs):
                    raise InputError(
                        f"Expected block {index} to read two of 0 … {index + 1}, but got {block.inputs}. 0 and 1 are "
                        "the cell's inputs, b + 2 is block b."
                    )

    def __str__(self) -> str:
        return f"normal: {_blocks_text(self.normal)} reduction: {_blocks_text(self.reduction)}"

    def graphs(self) -> dict[str, tuple[Edge, ...]]:
        """Two cells, `normal` and `reduction`; loose ends go into `output`."""
        return {"normal": _block_edges(self.normal), "reduction": _block_edges(self.reduction)}


def _blocks_text(blocks: Iterable[CellNode]) -> str:
    return " ".join(
        "+".join(f"{operation}({source})" for operation, source in zip(block.operations, block.inputs, strict=True))
        for block in blocks
    )


def _block_edges(blocks: Sequence[CellNode]) -> tuple[Edge, ...]:
    arrows = [
        Edge(str(source), str(index), operation)
        for index, block in enumerate(blocks, 2)
        for source, operation in zip(block.inputs, block.operations, strict=True)
    ]
    arrows += [Edge(str(index), "output", "concatenate") for index in cell_loose_ends(blocks)]
    return tuple(arrows)


def cell_loose_ends(blocks: Sequence[CellNode]) -> tuple[int, ...]:
    """What no block reads: of the cell's inputs (0, 1) and the blocks (b + 2), in order; they make the cell's output.

    That an input which nobody reads goes into the output is the rule of the code released with the paper. It also
    means that no cell of a stack is ever computed in vain.

    Args:
        blocks: The blocks of one cell.

    >>> block = CellNode((1, 1), ("identity", "sep_conv_3x3"))
    >>> cell_loose_ends((block, block))
    (0, 2, 3)
    """
    read = {source for block in blocks for source in block.inputs}
    return tuple(index for index in range(len(blocks) + 2) if index not in read)


@dataclass(frozen=True)
class CellSpace(Space[CellArchitecture]):
    """The ENAS micro space (Pham et al. 2018, section 2.4): two cells of B blocks, (Π_b (b+2)² · 5²)² architectures.

    A block adds two operations, each on one of the cell's two inputs or of the earlier blocks.

    Decisions come in the order in which the paper's controller takes them: the normal cell, then the reduction cell;
    for each block its two inputs, then its two operations.

    Args:
        num_blocks: B, at least 1. The paper's "7 nodes" are its B = 5 blocks and the two inputs.
        operations: Those to choose from, out of `CELL_OPERATIONS`.

    Raises:
        InputError: If `num_blocks` is below 1, or `operations` are unknown, repeated or missing.

    >>> space = CellSpace(1)
    >>> space.size, space.num_choices
    (10000, (2, 2, 5, 5, 2, 2, 5, 5))
    >>> text = "normal: identity(0)+sep_conv_3x3(1) reduction: max_pool_3x3(1)+max_pool_3x3(0)"
    >>> space.encode(space.parse(text))
    (0, 1, 0, 1, 1, 0, 4, 4)
    """

    num_blocks: int = 5
    operations: tuple[str, ...] = CELL_OPERATIONS

    def __post_init__(self) -> None:
        _expect_at_least_one("blocks in a cell", self.num_blocks)
        _expect_subset("operation", self.operations, CELL_OPERATIONS)

    @cached_property
    def num_choices(self) -> tuple[int, ...]:
        """Two inputs out of b + 2, then two operations, for each block b of the normal and of the reduction cell."""
        num_operations = len(self.operations)
        one_cell = tuple(
            options
            for index in range(self.num_blocks)
            for options in (index + 2, index + 2, num_operations, num_operations)
        )
        return one_cell * 2

    def parse(self, text: str) -> CellArchitecture:
        """Read two cells, `normal: … reduction: …`, each block as `operation(input)+operation(input)`.

        Args:
            text: What `str` printed.

        Raises:
            InputError: With the position of the first mistake.
        """
        scanner = _Scanner(text)
        cells = {}
        for name in ("normal", "reduction"):
            scanner.skip_spaces()
            scanner.literal(f"{name}:")
            cells[name] = tuple(self._parse_block(scanner, index, name) for index in range(self.num_blocks))
        scanner.end(f"the end after {self.num_blocks} blocks of the reduction cell")
        return CellArchitecture(**cells)

    def _parse_block(self, scanner: "_Scanner", index: int, name: str) -> CellNode:
        scanner.skip_spaces()
        if scanner.at_end:
            scanner.fail(
                f"block {index + 1} of {self.num_blocks} of the {name} cell, such as 'identity(0)+identity(1)'"
            )
        first, first_input = scanner.call("an operation", self.operations, index + 2)
        scanner.skip_spaces()
        scanner.literal("+")
        scanner.skip_spaces()
        second, second_input = scanner.call("an operation", self.operations, index + 2)
        return CellNode((first_input, second_input), (first, second))

    def _encode(self, architecture: CellArchitecture) -> tuple[int, ...]:
        decisions: list[int] = []
        for blocks in (architecture.normal, architecture.reduction):
            _expect_count("blocks", blocks, self.num_blocks)
            for block in blocks:
                decisions += (*block.inputs, *map(self.operations.index, block.operations))
        return tuple(decisions)

    def _decode(self, decisions: tuple[int, ...]) -> CellArchitecture:
        fours = [decisions[start : start + 4] for start in range(0, len(decisions), 4)]
        blocks = tuple(
            CellNode((first, second), (self.operations[left], self.operations[right]))
            for first, second, left, right in fours
        )
        return CellArchitecture(blocks[: self.num_blocks], blocks[self.num_blocks :])


# ---- NAS-Bench-201 -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nas201Architecture(Architecture):
    """A NAS-Bench-201 cell: four nodes, one operation on each of the edges `NAS201_EDGES`.

    Prints as the benchmark's own string: nodes 1, 2, 3 joined by `+`, each with its incoming edges `operation~source`.

    Args:
        operations: Six of `NAS201_OPERATIONS`, in the order of `NAS201_EDGES`.

    Raises:
        InputError: If there are not six, or one is unknown.

    >>> print(Nas201Architecture(("none", "skip_connect", "none", "none", "nor_conv_1x1", "avg_pool_3x3")))
    |none~0|+|skip_connect~0|none~1|+|none~0|nor_conv_1x1~1|avg_pool_3x3~2|
    """

    operations: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.operations) != len(NAS201_EDGES):
            raise InputError(
                f"Expected 6 operations in a NAS-Bench-201 cell, but got {len(self.operations)}. Give one per edge "
                f"of {NAS201_EDGES}."
            )
        for operation in self.operations:
            expect_one_of("operation", operation, NAS201_OPERATIONS)

    def __str__(self) -> str:
        labels = [
            f"{operation}~{source}|" for operation, (source, _) in zip(self.operations, NAS201_EDGES, strict=True)
        ]
        return "+".join("|" + "".join(labels[start:stop]) for start, stop in ((0, 1), (1, 3), (3, 6)))

    def graphs(self) -> dict[str, tuple[Edge, ...]]:
        """One cell; edges with `none` are left out."""
        arrows = (
            Edge(str(source), str(target), operation)
            for operation, (source, target) in zip(self.operations, NAS201_EDGES, strict=True)
            if operation != "none"
        )
        return {"cell": tuple(arrows)}


@dataclass(frozen=True, repr=False)
class Nas201Space(Space[Nas201Architecture]):
    """The cell space of NAS-Bench-201 (Dong and Yang 2020, arXiv:2001.00326): 6 edges, 5 operations each.

    Args:
        operations: Those to choose from, out of `NAS201_OPERATIONS`.

    Raises:
        InputError: If `operations` are unknown, repeated or missing.

    >>> space = Nas201Space()
    >>> space.size
    15625
    >>> cell = space.parse("|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|none~1|skip_connect~2|")
    >>> space.encode(cell)
    (3, 3, 4, 1, 0, 1)
    """

    operations: tuple[str, ...] = NAS201_OPERATIONS

    def __post_init__(self) -> None:
        _expect_subset("operation", self.operations, NAS201_OPERATIONS)

    def __repr__(self) -> str:
        # What is usual is left out, as in states from before there was a choice.
        return f"Nas201Space({'' if self.operations == NAS201_OPERATIONS else self.operations})"

    @cached_property
    def num_choices(self) -> tuple[int, ...]:
        """One operation for each edge."""
        return (len(self.operations),) * len(NAS201_EDGES)

    def parse(self, text: str) -> Nas201Architecture:
        """Read the benchmark's own string, `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`.

        Args:
            text: As in the benchmark's tables.

        Raises:
            InputError: With the position of the first mistake.
        """
        scanner = _Scanner(text)
        scanner.skip_spaces()
        operations = []
        for target in (1, 2, 3):
            scanner.literal("|" if target == 1 else "+|")
            for source in range(target):
                operations.append(scanner.word("an operation", self.operations))
                scanner.literal(f"~{source}|")
        scanner.end("the end after the third node")
        return Nas201Architecture(tuple(operations))

    def _encode(self, architecture: Nas201Architecture) -> tuple[int, ...]:
        _expect_count("edges", architecture.operations, len(NAS201_EDGES))
        return tuple(map(self.operations.index, architecture.operations))

    def _decode(self, decisions: tuple[int, ...]) -> Nas201Architecture:
        return Nas201Architecture(tuple(self.operations[decision] for decision in decisions))


# ---- reading and checking ----------------------------------------------------------------------------------------


class _Scanner:
    """Reads a text from left to right and says where it went wrong."""

    _WORD = re.compile(r"[A-Za-z0-9_]+")
    _LONGEST_SHOWN = 160

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    @property
    def at_end(self) -> bool:
        return self.position == len(self.text)

    def fail(self, expected: str, hint: str = "") -> NoReturn:
        word = self._WORD.match(self.text, self.position)
        found = "the end of the text" if self.at_end else repr(word[0] if word else self.text[self.position])
        longest = self._LONGEST_SHOWN
        shown = self.text if len(self.text) <= longest else self.text[:longest] + "…"
        raise InputError(
            f"Expected {expected} at position {self.position} of {shown!r}, but got {found}."
            + (f" {hint}" if hint else " Positions count from 0.")
        )

    def skip_spaces(self) -> None:
        while not self.at_end and self.text[self.position].isspace():
            self.position += 1

    def literal(self, expected: str) -> None:
        for place, character in enumerate(expected):
            if not self.text.startswith(character, self.position):
                self.fail(repr(expected[place:]))
            self.position += 1

    def word(self, what: str, choices: Sequence[str]) -> str:
        match = self._WORD.match(self.text, self.position)
        if match is None or match[0] not in choices:
            nearest = difflib.get_close_matches(match[0], choices, n=1, cutoff=0.4) if match else []
            hint = f"Did you mean {nearest[0]!r}?" if nearest else ""
            self.fail(f"{what} ({', '.join(choices)})", hint)
        self.position = match.end()
        return match[0]

    def call(self, what: str, choices: Sequence[str], limit: int) -> tuple[str, int]:
        """A word and, in brackets, an integer below `limit`."""
        name = self.word(what, choices)
        self.literal("(")
        match = self._WORD.match(self.text, self.position)
        # int() would also read other spellings: leading zeros, underscores, digits of other scripts.
        if match is None or not re.fullmatch(r"0|[1-9][0-9]{0,8}", match[0]) or int(match[0]) >= limit:
            self.fail(f"an earlier node's number, 0 … {limit - 1}," if limit > 1 else "node 0")
        self.position = match.end()
        self.literal(")")
        return name, int(match[0])

    def end(self, expected: str) -> None:
        self.skip_spaces()
        if not self.at_end:
            self.fail(expected)


def _expect_at_least_one(what: str, number: int) -> None:
    if number < 1:
        raise InputError(f"Expected at least 1 of the {what}, but got {number}. Choose a positive number.")


def _expect_subset(what: str, chosen: Sequence[str], known: Sequence[str]) -> None:
    if not chosen or len(set(chosen)) != len(chosen):
        raise InputError(
            f"Expected one or more different {what}s, but got {', '.join(chosen) or 'none'}. Choose from "
            f"{', '.join(known)}."
        )
    for name in chosen:
        expect_one_of(what, name, known)


def _expect_count(what: str, items: Sequence[object], number: int) -> None:
    if len(items) != number:
        message = f"it has {len(items)} {what}, not {number}"
        raise ValueError(message)
