"""NAS-Bench-Graph: four nodes, each reads one node before it through a graph operation; the leaves are the output."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.errors import InputError, expect_one_of
from forgetless.spaces.base import (
    SPACES,
    Architecture,
    Edge,
    Scanner,
    SearchSpace,
    Space,
    SpaceOptions,
    expect_count,
)
from forgetless.spaces.graph.canonical import GRAPH_LINKS, GRAPH_OPERATIONS, NUM_NODES, canonical

if TYPE_CHECKING:
    import torch

    from forgetless.spaces.graph.supernet import GraphSupernet

NUM_UNIQUE = 26_206
"""Architectures of the benchmark: of the 9 · 9⁴ decisions, those that are different functions."""


@dataclass(frozen=True)
class GraphArchitecture(Architecture):
    """Which node each of four nodes reads, and through which operation.

    Whatever it is made from, it is the one that the benchmark's table has for this function (`canonical`), and prints
    as in shared tables of the benchmark: `0112|gcn,gat,skip,fc`.

    Args:
        links: For nodes 1 … 4 the node that it reads, 0 (the input) or an earlier one.
        operations: Of nodes 1 … 4, out of `GRAPH_OPERATIONS`.

    Raises:
        InputError: If there are not four of each, a node reads itself or a later one, or an operation is unknown.

    >>> print(GraphArchitecture((0, 1, 2, 1), ("gcn", "gin", "fc", "cheb")))
    0112|gcn,gin,cheb,fc
    """

    links: tuple[int, ...]
    operations: tuple[str, ...]

    def __post_init__(self) -> None:
        for what, given in (("links", self.links), ("operations", self.operations)):
            if len(given) != NUM_NODES:
                raise InputError(f"Expected {NUM_NODES} {what}, but got {len(given)}. Give one per node.")
        for node, link in enumerate(self.links, 1):
            if not 0 <= link < node:
                raise InputError(
                    f"Expected node {node} to read one of the nodes 0 … {node - 1}, but got {link}. A node reads an "
                    "earlier node."
                )
        for operation in self.operations:
            expect_one_of("operation", operation, GRAPH_OPERATIONS)
        links, operations = canonical(tuple(self.links), tuple(self.operations))
        object.__setattr__(self, "links", links)
        object.__setattr__(self, "operations", operations)

    def __str__(self) -> str:
        return f"{''.join(map(str, self.links))}|{','.join(self.operations)}"

    @property
    def leaves(self) -> tuple[int, ...]:
        """The nodes that no other node reads, from 1; together they are the output."""
        return tuple(node for node in range(1, NUM_NODES + 1) if node not in self.links)

    @cached_property
    def are_raw(self) -> tuple[bool, ...]:
        """For nodes 0 … 4 whether it is the raw features: the input, and what skips straight from it."""
        raw = [True]
        for link, operation in zip(self.links, self.operations, strict=True):
            raw.append(raw[link] and operation == "skip")
        return tuple(raw)

    def graphs(self) -> dict[str, tuple[Edge, ...]]:
        """One graph: 0 is the input, and the leaves are concatenated to the output."""
        arrows = [
            Edge(str(link), str(node), operation)
            for node, (link, operation) in enumerate(zip(self.links, self.operations, strict=True), 1)
        ]
        return {"cell": (*arrows, *(Edge(str(leaf), "output", "concatenate") for leaf in self.leaves))}


@dataclass(frozen=True)
class GraphSpace(Space[GraphArchitecture]):
    """The search space of NAS-Bench-Graph (Qin et al. 2022, arXiv:2206.09166, section 3.1): 26,206 architectures.

    Decisions are one of nine macro structures and one of nine operations for each of four nodes, 59,049 sequences.
    Many are the same function in another notation, and every sequence decodes to the one that the benchmark has, so
    that `encode(decode(d))` may differ from d, unlike in other spaces; `size`, iteration and `sample` count each
    architecture once. A strategy that learns from encoded proposals, as `enas` does, learns about that notation.

    >>> space = GraphSpace()
    >>> space.size, space.num_choices
    (26206, (9, 9, 9, 9, 9))
    >>> architecture = space.parse("0121|gcn,gin,fc,cheb")
    >>> print(architecture, space.encode(architecture), architecture.leaves)
    0112|gcn,gin,cheb,fc (6, 1, 2, 3, 7) (3, 4)
    """

    @cached_property
    def num_choices(self) -> tuple[int, ...]:
        """A macro structure, and an operation for each node."""
        return (len(GRAPH_LINKS), *(len(GRAPH_OPERATIONS),) * NUM_NODES)

    @cached_property
    def size(self) -> int:
        """26,206."""
        return NUM_UNIQUE

    def __iter__(self) -> Iterator[GraphArchitecture]:
        for decisions in itertools.product(*map(range, self.num_choices)):
            architecture = self._decode(decisions)
            if self._encode(architecture) == decisions:
                yield architecture

    @property
    def has_canonical_form(self) -> bool:
        """See `canonical_form`."""
        return True

    def canonical_form(self, architecture: GraphArchitecture) -> str:
        """The architecture with `cheb` in the place of every `arma` that no node reads: 20,261 functions.

        Every architecture is in the one notation that the benchmark has, so that only this is left to merge. With S for
        D^(-1/2) A D^(-1/2), `cheb` is H W − S H V + b and `arma` max(0, S H W + H V + b). The ReLU after the leaves
        changes nothing of the latter and makes them the same for −V and W changed over, whose initial distributions
        are the same too. The table has both, trained with other seeds, so that it tells its own noise by these pairs.

        Args:
            architecture: A member of this space.

        >>> space = GraphSpace()
        >>> space.canonical_form(space.parse("0112|arma,gcn,arma,arma"))
        '0112|arma,gcn,cheb,cheb'
        """
        operations = tuple(
            "cheb" if operation == "arma" and node in architecture.leaves else operation
            for node, operation in enumerate(architecture.operations, 1)
        )
        return str(GraphArchitecture(architecture.links, operations))

    def parse(self, text: str) -> GraphArchitecture:
        """Read `0112|gcn,gat,skip,fc`: what nodes 1 … 4 read, and their operations. Nodes may come in any order.

        Args:
            text: As in the benchmark's tables.

        Raises:
            InputError: With the position of the first mistake.
        """
        scanner = Scanner(text)
        scanner.skip_spaces()
        links, operations = [], []
        for node in range(1, NUM_NODES + 1):
            earlier = [str(link) for link in range(node) if scanner.text.startswith(str(link), scanner.position)]
            if not earlier:
                scanner.fail(f"the node that node {node} reads, 0 … {node - 1}," if node > 1 else "node 0")
            scanner.literal(earlier[0])
            links.append(int(earlier[0]))
        for node in range(NUM_NODES):
            scanner.literal("," if node else "|")
            operations.append(scanner.word("an operation", GRAPH_OPERATIONS))
        scanner.end(f"the end after {NUM_NODES} operations")
        return GraphArchitecture(tuple(links), tuple(operations))

    def sample(self, generator: torch.Generator) -> GraphArchitecture:
        """An architecture drawn uniformly from the 26,206.

        Decisions are drawn until they are the notation of the architecture that they decode to.

        Args:
            generator: The source of randomness, on the CPU.
        """
        import torch

        while True:
            drawn = tuple(int(torch.randint(options, (), generator=generator)) for options in self.num_choices)
            architecture = self._decode(drawn)
            if self._encode(architecture) == drawn:
                return architecture

    def mutate(self, architecture: GraphArchitecture, generator: torch.Generator) -> GraphArchitecture:
        """A neighbour: one decision, drawn uniformly, takes another of its options; drawn again if it is the same.

        Args:
            architecture: A member of this space.
            generator: The source of randomness, on the CPU.

        Raises:
            InputError: If `architecture` is not in this space.
        """
        while (changed := super().mutate(architecture, generator)) == architecture:
            pass
        return changed

    def published_table(self, name: str) -> Path | None:
        """Where the benchmark's table lies, if it has this name: a file with one line per architecture.

        Args:
            name: `nasbenchgraph`, of the table of nine data sets.

        Raises:
            InputError: If it is in no folder of data, and the package `nas-bench-graph` is not installed.
        """
        from forgetless.spaces.graph import table

        return table.path() if name == table.NAME else None

    def _encode(self, architecture: GraphArchitecture) -> tuple[int, ...]:
        expect_count("nodes", architecture.links, NUM_NODES)
        structure = GRAPH_LINKS.index(architecture.links)
        return (structure, *map(GRAPH_OPERATIONS.index, architecture.operations))

    def _decode(self, decisions: tuple[int, ...]) -> GraphArchitecture:
        links, *operations = decisions
        return GraphArchitecture(GRAPH_LINKS[links], tuple(GRAPH_OPERATIONS[each] for each in operations))


@dataclass(frozen=True, kw_only=True)
class GraphOptions(SpaceOptions):
    """Options of the graph networks and their supernet.

    Attributes:
        units: Of each node; the benchmark has 256 on Cora and Citeseer.
        dropout: Of the features and of what nodes read; the benchmark has 0.7 on Cora and Citeseer.
    """

    units: int = 256
    dropout: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(1, "units")
        self.expect_below_1("dropout")


@SPACES.register
class GraphSearchSpace(SearchSpace):
    """The graph networks of NAS-Bench-Graph on the nodes of a graph: 26,206, each of four graph operations.

    Source: Qin et al. 2022, arXiv:2206.09166; see `GraphSpace` and `supernet.GraphSupernet`.
    """

    name: ClassVar[str] = "graph"
    label: ClassVar[str] = "graph networks"
    Options: ClassVar[type[SpaceOptions]] = GraphOptions
    task: ClassVar[str] = "graphs"
    training: ClassVar[Mapping[str, Any]] = {"learning_rate": {"sgd": 0.1}, "max_gradient_norm": 5.0}
    reading: ClassVar[str] = "0 is the nodes’ features; the output concatenates the nodes that no other node reads."
    options: GraphOptions

    @cached_property
    def space(self) -> GraphSpace:
        """There is but one."""
        return GraphSpace()

    def make_supernet(self, task: Any) -> GraphSupernet:
        """Every operation of every node, on features and on units.

        Args:
            task: Decides the graph and the classes.
        """
        from forgetless.spaces.graph.supernet import GraphSupernet

        return GraphSupernet(task.data, self.options.units, dropout=self.options.dropout)

    def memory_bytes(self, task: Any, copies: int) -> int:
        """Weights, and what a pass over the whole graph keeps.

        Args:
            task: Decides the graph and the classes.
            copies: Numbers kept per weight.

        Returns:
            Bytes.
        """
        from forgetless.spaces.graph.supernet import GraphSupernet

        return GraphSupernet.memory_bytes(task.data, self.options.units, copies=copies)

    @property
    def size(self) -> str:
        """Units."""
        return f"{self.options.units} units"
