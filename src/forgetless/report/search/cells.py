"""Drawings of cells: what an architecture computes, from left to right."""

import itertools
import re
from collections.abc import Sequence

import networkx as nx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from forgetless.layered import heights
from forgetless.report.canvas import FONT, GRID, INK, QUIET
from forgetless.spaces import Architecture, Edge

_WIDTH = 9.0  # inches, as the other figures
_ROW, _HALF_STEP = 0.58, 0.72  # inches between two lanes, and between a node and the operation after it
_BOX = (0.52, 0.36)  # inches

# Where these arrows end, all inputs go through the same: it is written into the node.
_JOINTS = {"h'": "mean", "output": "concatenate"}


def cell_drawing(architecture: Architecture) -> Figure:
    """The cells of an architecture, one below the other.

    A layered drawing (see `forgetless.layered`): a node stands right of all that it reads, and every arrow has a lane
    of its own past the nodes between. Operations stand on the arrows; the activation function of a recurrent cell's
    node stands in the node.

    Args:
        architecture: Of any space.

    Returns:
        The figure, 9 inches wide, or wider for a very deep cell.
    """
    in_nodes = architecture.functions_in_nodes
    cells = [(name, _Layout(edges, in_nodes=in_nodes)) for name, edges in architecture.graphs().items()]
    width = max(_WIDTH, *(layout.width + 0.4 for _, layout in cells))
    heights = [layout.height + (0.3 if len(cells) > 1 else 0) for _, layout in cells]
    figure = Figure(figsize=(width, sum(heights)), facecolor="white", dpi=100)
    axes = figure.subplots(len(cells), 1, squeeze=False, height_ratios=heights).flat
    figure.subplots_adjust(0, 0, 1, 1, hspace=0)
    for ax, (name, layout), height in zip(axes, cells, heights, strict=True):
        middle = layout.width / 2
        ax.set_xlim(middle - width / 2, middle + width / 2)
        ax.set_ylim(-layout.height / 2, height - layout.height / 2)
        ax.set_axis_off()
        if len(cells) > 1:
            ax.text(0.01, 0.97, f"{name} cell", transform=ax.transAxes, va="top", fontsize=10.5, **FONT)
        layout.draw(ax)
    return figure


class _Layout:
    """Where the nodes, arrows and operations of one cell stand, in inches."""

    def __init__(self, edges: Sequence[Edge], *, in_nodes: bool) -> None:
        self.functions = {e.target: e.label for e in edges if in_nodes or e.target in _JOINTS}
        graph = nx.MultiDiGraph([(edge.source, edge.target) for edge in edges])
        # Every second column is for operations, where they stand on arrows.
        step = 1 if in_nodes else 2
        generations = enumerate(nx.topological_generations(graph))
        self.column = {node: step * depth for depth, nodes in generations for node in sorted(nodes)}
        self.nodes = list(self.column)
        self.arrows = [self._lane(i, edge) for i, edge in enumerate(edges)]
        self._place()

    def _lane(self, index: int, edge: Edge) -> tuple[list[str], str]:
        """The points that an arrow passes, one per column, and the operation on its first one in between."""
        lane = [f"{index}/{c}" for c in range(self.column[edge.source] + 1, self.column[edge.target])]
        self.column |= {point: self.column[edge.source] + 1 + i for i, point in enumerate(lane)}
        return [edge.source, *lane, edge.target], "" if edge.target in self.functions else edge.label

    def _place(self) -> None:
        best = heights(self.column, [pair for points, _ in self.arrows for pair in itertools.pairwise(points)])
        half_step = _HALF_STEP * (1.4 if "0" in self.functions else 1.0)
        middle = (max(best.values(), default=0.0) + min(best.values(), default=0.0)) / 2
        self.at = {point: (0.45 + half_step * self.column[point], _ROW * (middle - y)) for point, y in best.items()}
        self.width = 0.9 + half_step * max(self.column.values(), default=0)
        self.height = _ROW * (2 * max(map(abs, (y - middle for y in best.values())), default=0.0) + 1) + 0.25

    def draw(self, ax: Axes) -> None:
        """Draw the cell on axes in inches."""
        if not self.arrows:
            ax.text(0.45, 0, "no operation at all", ha="center", va="center", fontsize=10, **FONT)
        for points, label in self.arrows:
            ax.add_patch(_arrow([self.at[point] for point in points]))
            if label:
                box = {"boxstyle": "round,pad=0.18", "facecolor": "white", "edgecolor": GRID}
                ax.text(
                    *self.at[points[1]], _operation(label), ha="center", va="center", fontsize=7.5, bbox=box, **FONT
                )
        for node in self.nodes:
            x, y = self.at[node]
            corner = (x - _BOX[0] / 2 + 0.06, y - _BOX[1] / 2 + 0.06)
            ax.add_patch(
                FancyBboxPatch(
                    corner,
                    _BOX[0] - 0.12,
                    _BOX[1] - 0.12,
                    boxstyle="round,pad=0.06",
                    facecolor="#DCE8F2" if node in self.functions else "#F3F3F1",
                    edgecolor=INK,
                    linewidth=1.0,
                    zorder=3,
                    gid=f"node {node}",
                )
            )
            function = self.functions.get(node)
            text = node if function is None else f"{node}\n{function.replace('concatenate', 'concat.')}"
            ax.text(x, y, text, ha="center", va="center", fontsize=7.5 if function else 10, zorder=4, **FONT)


def _arrow(points: Sequence[tuple[float, float]]) -> FancyArrowPatch:
    """A smooth arrow through the points, level at each, from the right of the first box to the left of the last."""
    (x, y), *_ = points
    u, v = points[-1]
    points = [(x + _BOX[0] / 2, y), *points[1:-1], (u - _BOX[0] / 2 - 0.02, v)]
    vertices, codes = [points[0]], [Path.MOVETO]
    for (a, b), (c, d) in itertools.pairwise(points):
        vertices += [((a + c) / 2, b), ((a + c) / 2, d), (c, d)]
        codes += [Path.CURVE4] * 3
    path = Path(vertices, codes)
    return FancyArrowPatch(path=path, arrowstyle="-|>", mutation_scale=9, color=QUIET, linewidth=1.1, zorder=1)


def _operation(label: str) -> str:
    """Words for `sep_conv_3x3`, the last in a line of its own."""
    words, _, last = label.replace("_", " ").rpartition(" ")
    size = re.sub(r"(?<=\d)x(?=\d)", "×", last)
    return f"{words}\n{size}".lstrip()
