"""What the rules have in common that count in an architecture's drawing (`Architecture.graphs`)."""

from collections.abc import Iterable

from forgetless.spaces.base import Architecture, Edge

NO_OPERATION = frozenset({"none", "identity", "skip", "skip_connect", "mean", "concatenate"})
"""Labels of arrows that compute nothing of their own."""


def operations_of(architecture: Architecture) -> list[str]:
    """The operations of all cells of an architecture, once for each arrow.

    Args:
        architecture: A member of any space.

    >>> from forgetless.spaces.nas201 import Nas201Space
    >>> cell = "|skip_connect~0|+|none~0|nor_conv_1x1~1|+|nor_conv_3x3~0|none~1|none~2|"
    >>> operations_of(Nas201Space().parse(cell))
    ['nor_conv_1x1', 'nor_conv_3x3']
    """
    labels = (edge.label for edges in architecture.graphs().values() for edge in edges)
    return [label for label in labels if label not in NO_OPERATION]


def longest_path(edges: Iterable[Edge]) -> int:
    """The most operations on any path through a cell.

    Args:
        edges: Of the cell, those into a node before those out of it.

    >>> longest_path([Edge("0", "1", "conv"), Edge("1", "2", "identity"), Edge("0", "2", "conv"), Edge("2", "3", "x")])
    2
    """
    depth: dict[str, int] = {}
    for source, target, label in edges:
        reached = depth.get(source, 0) + (label not in NO_OPERATION)
        depth[target] = max(depth.get(target, 0), reached)
    return max(depth.values(), default=0)
