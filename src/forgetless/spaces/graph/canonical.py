"""One notation for each function of NAS-Bench-Graph.

Four nodes that each read one node before them are a tree under the input. Two of its notations are the same function,
and the benchmark trains but one of them, if they differ in

- the order of nodes,
- a skip that other nodes read: they might read what it reads,
- a skip that nobody reads and that is all that reads a node: the node itself might be the output,
- a skip that nobody reads, of the raw features: the benchmark has no features in the output.

What such skips leave is a tree of n ≤ 4 nodes. The benchmark puts 4 − n skips between the input and that tree. (The
third and fourth are the benchmark's own conventions: a skip normalises what it reads unless that is the features.)
"""

from collections.abc import Iterator, Sequence
from functools import cache

NUM_NODES = 4

GRAPH_OPERATIONS = ("gat", "gcn", "gin", "cheb", "sage", "arma", "graph", "fc", "skip")
"""Operations in the benchmark's order, by which it sorts nodes that may change places."""

GRAPH_LINKS = (
    (0, 0, 0, 0),
    (0, 0, 0, 1),
    (0, 0, 1, 1),
    (0, 0, 1, 2),
    (0, 0, 1, 3),
    (0, 1, 1, 1),
    (0, 1, 1, 2),
    (0, 1, 2, 2),
    (0, 1, 2, 3),
)
"""The nine trees of four nodes: the node that each reads, 0 for the input."""

_SKIP, _FULLY_CONNECTED = GRAPH_OPERATIONS.index("skip"), GRAPH_OPERATIONS.index("fc")

Tree = tuple[int, tuple["Tree", ...]]
"""The number of a node's operation, and the trees that read it."""


@cache
def canonical(links: tuple[int, ...], operations: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The notation that the benchmark has for a function.

    Four skips compute nothing, and the benchmark leaves them out; they are taken as three skips and one `fc`.

    Args:
        links: For each node 1 … 4 the node that it reads, 0 … node − 1.
        operations: Of each node, out of `GRAPH_OPERATIONS`.

    Returns:
        Links and operations: the first in lexicographic order, operations by number, of all orders of the nodes.

    >>> canonical((0, 0, 1, 3), ("skip", "gcn", "gat", "skip"))
    ((0, 1, 2, 2), ('skip', 'skip', 'gat', 'gcn'))
    """
    forest = _forest(links, [GRAPH_OPERATIONS.index(operation) for operation in operations])
    return _first_notation(forest or ((_FULLY_CONNECTED, ()),))


@cache
def _first_notation(forest: tuple[Tree, ...]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """As `canonical`, of the trees that read the input, filled up with skips."""
    for _ in range(NUM_NODES - _num_nodes(forest)):
        forest = ((_SKIP, forest),)
    found, numbers = min(_notations(tuple((0, tree) for tree in forest)))
    return found, tuple(GRAPH_OPERATIONS[number] for number in numbers)


def _forest(links: Sequence[int], operations: Sequence[int]) -> tuple[Tree, ...]:
    """The trees that read the input, without the skips that change nothing."""

    def readers(node: int) -> Iterator[int]:
        """What reads a node, through skips that are read."""
        for other, link in enumerate(links, 1):
            if link == node:
                is_passed = operations[other - 1] == _SKIP and other in links
                yield from readers(other) if is_passed else (other,)

    def trees(node: int) -> tuple[Tree, ...]:
        found = list(readers(node))
        if node == 0 or len(found) == 1:
            found = [other for other in found if operations[other - 1] != _SKIP]
        # Sorted, so that the same function is the same tree, which `_first_notation` remembers.
        return tuple(sorted((operations[other - 1], trees(other)) for other in found))

    return trees(0)


def _num_nodes(forest: tuple[Tree, ...]) -> int:
    return sum(1 + _num_nodes(readers) for _, readers in forest)


def _notations(
    ready: tuple[tuple[int, Tree], ...], next_node: int = 1
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Links and operations of the orders of nodes, each after what it reads, of which one may be the first.

    What reads the earliest node comes next, because links are compared first; of trees that differ in their first
    operation alone, the one with the lower number.

    Args:
        ready: Node and a tree that reads it, for all trees whose turn may be now.
        next_node: The number that the next node gets.
    """
    if not ready:
        yield (), ()
        return
    link = min(ready)[0]
    chosen: dict[tuple[Tree, ...], int] = {}
    for other, (operation, readers) in ready:
        if other == link:
            chosen[readers] = min(operation, chosen.get(readers, operation))
    for readers, operation in chosen.items():
        i = ready.index((link, (operation, readers)))
        rest = (*ready[:i], *ready[i + 1 :], *((next_node, tree) for tree in readers))
        for links, operations in _notations(rest, next_node + 1):
            yield (link, *links), (operation, *operations)
