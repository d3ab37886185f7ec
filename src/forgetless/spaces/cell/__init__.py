"""The ENAS micro space: a normal and a reduction cell of B blocks each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from forgetless.errors import InputError
from forgetless.spaces._image_space import ImageSearchSpace
from forgetless.spaces.base import (
    SPACES,
    Architecture,
    Edge,
    Scanner,
    Space,
    SpaceOptions,
    expect_at_least_one,
    expect_count,
    expect_subset,
)

if TYPE_CHECKING:
    from forgetless.spaces.cell.supernet import CellSupernet

CELL_OPERATIONS = ("identity", "sep_conv_3x3", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3")


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
        expect_at_least_one("blocks in a cell", self.num_blocks)
        expect_subset("operation", self.operations, CELL_OPERATIONS)

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
        scanner = Scanner(text)
        cells = {}
        for name in ("normal", "reduction"):
            scanner.skip_spaces()
            scanner.literal(f"{name}:")
            cells[name] = tuple(self._parse_block(scanner, index, name) for index in range(self.num_blocks))
        scanner.end(f"the end after {self.num_blocks} blocks of the reduction cell")
        return CellArchitecture(**cells)

    def _parse_block(self, scanner: Scanner, index: int, name: str) -> CellNode:
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

    @property
    def has_canonical_form(self) -> bool:
        """Blocks may be numbered in other ways, and their two halves swapped."""
        return True

    def canonical_form(self, architecture: CellArchitecture) -> str:
        """The first notation in lexicographic order, over all orders of the blocks and of their halves.

        Args:
            architecture: A member of this space.

        >>> space = CellSpace(2)
        >>> reduction = "reduction: identity(0)+identity(0) identity(0)+identity(0)"
        >>> one = space.parse(f"normal: identity(0)+identity(1) max_pool_3x3(0)+identity(0) {reduction}")
        >>> other = space.parse(f"normal: identity(0)+max_pool_3x3(0) identity(1)+identity(0) {reduction}")
        >>> space.canonical_form(one) == space.canonical_form(other)
        True
        """
        cells = (architecture.normal, architecture.reduction)
        return " ".join(
            map(str, (_first_order(blocks, {0: 0, 1: 1}, frozenset(range(len(blocks)))) for blocks in cells))
        )

    def _encode(self, architecture: CellArchitecture) -> tuple[int, ...]:
        decisions: list[int] = []
        for blocks in (architecture.normal, architecture.reduction):
            expect_count("blocks", blocks, self.num_blocks)
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


def _first_order(
    blocks: Sequence[CellNode], places: Mapping[int, int], left: frozenset[int]
) -> tuple[tuple[tuple[int, str], ...], ...]:
    """The least sequence of blocks, each as its sorted halves, in which no block comes before what it reads.

    Args:
        blocks: Of a cell.
        places: Number of an input, or of a block plus 2 → where it came; of those before.
        left: The blocks to come.
    """
    if not left:
        return ()
    halves = {
        index: tuple(sorted((places[i], name) for i, name in zip(*blocks[index], strict=True)))
        for index in left
        if all(i in places for i in blocks[index].inputs)
    }
    least = min(halves.values())
    read = {source for index in left for source in blocks[index].inputs}
    ways = [index for index in halves if halves[index] == least]
    # Equal blocks that nobody reads may be swapped, so that one of them is enough.
    tried = [index for index in ways if index + 2 in read] + [index for index in ways if index + 2 not in read][:1]
    return min((least, *_first_order(blocks, {**places, index + 2: len(places)}, left - {index})) for index in tried)


@dataclass(frozen=True, kw_only=True)
class CellOptions(SpaceOptions):
    """Options of convolutional cells and their supernet.

    Attributes:
        nodes: Blocks of a cell.
        operations: Those that a block may have; all if None.
        units: Channels of the first stage.
        cells_per_stage: Normal cells per stage of the network.
    """

    nodes: int = 4
    operations: tuple[str, ...] | None = None
    units: int = 8
    cells_per_stage: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(1, "nodes", "units", "cells_per_stage")
        expect_subset("operation", self.operations, CELL_OPERATIONS)


@SPACES.register
class CellSearchSpace(ImageSearchSpace):
    """The ENAS micro space on images: (Π_b (b+2)² · 5²)² pairs of cells, stacked to a classifier.

    Source: Pham et al. 2018, arXiv:1802.03268, section 2.4; see `CellSpace` and `supernet.CellSupernet`.
    """

    name: ClassVar[str] = "cell"
    label: ClassVar[str] = "convolutional cells"
    Options: ClassVar[type[SpaceOptions]] = CellOptions
    reading: ClassVar[str] = "0 and 1 are the outputs of the two cells before; a block adds its two operations."
    options: CellOptions

    @cached_property
    def space(self) -> CellSpace:
        """Of as many blocks as asked for."""
        return CellSpace(self.options.nodes, self.options.operations or CELL_OPERATIONS)

    def _supernet(self) -> type[CellSupernet]:
        from forgetless.spaces.cell.supernet import CellSupernet

        return CellSupernet

    def _sizes(self, task: Any) -> tuple[Any, ...]:
        return *super()._sizes(task), self.space

    @property
    def size(self) -> str:
        """Blocks and channels."""
        return f"{self.options.nodes} blocks of {self.options.units} channels"

    @classmethod
    def like(cls, text: str) -> CellSpace:
        """Of as many blocks as the text has pairs of pluses."""
        return CellSpace(max(1, text.count("+") // 2))
