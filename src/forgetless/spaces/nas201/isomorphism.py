"""Which NAS-Bench-201 cells compute the same functions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from forgetless.spaces.nas201 import NAS201_EDGES, Nas201Architecture

INPUT = (-1, 0)
"""In the place of an edge: the cell's input."""

EdgeKey = tuple[int, int]


class Term(NamedTuple):
    """A summand of a node: what an edge with weights gives, or the cell's input, pooled some times."""

    edge: EdgeKey
    pools: int


class _Cell:
    """A cell as sums: each node, and with it what each edge reads.

    `none` adds nothing, nor does an operation on nothing; `skip_connect` adds what it reads; pooling is linear, so that
    it pools each summand. What is left are edges with weights, each of which is a function of its own.
    """

    def __init__(self, architecture: Nas201Architecture) -> None:
        self.operations = dict(zip(NAS201_EDGES, architecture.operations, strict=True))
        self.nodes: dict[int, tuple[Term, ...]] = {0: (Term(INPUT, 0),)}
        for node in (1, 2, 3):
            found = (term for source in range(node) for term in self._along((source, node)))
            self.nodes[node] = tuple(found)

    def _along(self, edge: EdgeKey) -> tuple[Term, ...]:
        operation, read = self.operations[edge], self.nodes[edge[0]]
        if operation == "none" or not read:
            return ()
        if operation == "skip_connect":
            return read
        if operation == "avg_pool_3x3":
            return tuple(Term(term.edge, term.pools + 1) for term in read)
        return (Term(edge, 0),)

    def text(self, node: int, marks: Mapping[EdgeKey, int]) -> str:
        """A node's sum, in alphabetical order, with a mark for edges that would otherwise read the same."""
        return "+".join(sorted(f"{'p' * term.pools}{self.edge_text(term.edge, marks)}" for term in self.nodes[node]))

    def edge_text(self, edge: EdgeKey, marks: Mapping[EdgeKey, int]) -> str:
        """An edge with weights, and what it reads."""
        if edge == INPUT:
            return "x"
        kind = "c" + self.operations[edge][-1]  # nor_conv_1x1, nor_conv_3x3: by their size
        return f"{kind}{marks.get(edge, '')}({self.text(edge[0], marks)})"

    def weighted(self, node: int) -> set[EdgeKey]:
        """The edges with weights that a node depends on."""
        own = {term.edge for term in self.nodes[node] if term.edge != INPUT}
        return own.union(*(self.weighted(source) for source, _ in own))


def canonical_form(architecture: Nas201Architecture) -> str:
    """A text that two cells have in common if and only if they compute the same functions.

    `c3(x)+pc1(x)` is a 3×3 convolution of the input and a pooled 1×1 convolution of it. Two edges with the same
    operation on the same input have weights of their own, and it matters where one of them is read twice: they are
    told apart by marks, in the way that makes the text least.

    NAS-Bench-201's own count of 6,466 is of another rule: it does not move pooling into sums and does not tell an edge
    that is read twice from two edges.

    Args:
        architecture: A cell.

    Returns:
        The output as a sum; empty for a cell that outputs zeros.
    """
    cell = _Cell(architecture)
    groups: dict[str, list[EdgeKey]] = {}
    for edge in sorted(cell.weighted(3)):
        groups.setdefault(cell.edge_text(edge, {}), []).append(edge)
    alike = [edges for edges in groups.values() if len(edges) > 1]
    return min(cell.text(3, marks) for marks in _markings(alike))


def _markings(groups: list[list[EdgeKey]]) -> Iterator[dict[EdgeKey, int]]:
    """Every way to number the edges of each group."""
    for orders in itertools.product(*map(itertools.permutations, groups)):
        yield {edge: number for order in orders for number, edge in enumerate(order)}
