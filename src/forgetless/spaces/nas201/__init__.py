"""NAS-Bench-201: four nodes, one operation on each of the six edges between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from forgetless.errors import InputError, expect_one_of
from forgetless.spaces._image_space import ImageSearchSpace
from forgetless.spaces.base import (
    SPACES,
    Architecture,
    Edge,
    Scanner,
    Space,
    SpaceOptions,
    expect_count,
    expect_subset,
)

if TYPE_CHECKING:
    from forgetless.spaces.nas201.supernet import Nas201Supernet

NAS201_OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")

# Edges (source node, target node) of the NAS-Bench-201 cell, in the order of its strings.
NAS201_EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


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

    decides_edges: ClassVar[bool] = True

    operations: tuple[str, ...] = NAS201_OPERATIONS

    def __post_init__(self) -> None:
        expect_subset("operation", self.operations, NAS201_OPERATIONS)

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
        scanner = Scanner(text)
        scanner.skip_spaces()
        operations = []
        for target in (1, 2, 3):
            scanner.literal("|" if target == 1 else "+|")
            for source in range(target):
                operations.append(scanner.word("an operation", self.operations))
                scanner.literal(f"~{source}|")
        scanner.end("the end after the third node")
        return Nas201Architecture(tuple(operations))

    @property
    def has_canonical_form(self) -> bool:
        """See `canonical_form`."""
        return True

    def canonical_form(self, architecture: Nas201Architecture) -> str:
        """The cell's output as a sum, without `none` and `skip_connect`; see `spaces.nas201.isomorphism`.

        Args:
            architecture: A member of this space.

        >>> space = Nas201Space()
        >>> space.canonical_form(space.parse("|skip_connect~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|none~2|"))
        'x'
        """
        from forgetless.spaces.nas201.isomorphism import canonical_form

        self.encode(architecture)  # refuses strangers
        return canonical_form(architecture)

    def _encode(self, architecture: Nas201Architecture) -> tuple[int, ...]:
        expect_count("edges", architecture.operations, len(NAS201_EDGES))
        return tuple(map(self.operations.index, architecture.operations))

    def _decode(self, decisions: tuple[int, ...]) -> Nas201Architecture:
        return Nas201Architecture(tuple(self.operations[decision] for decision in decisions))


@dataclass(frozen=True, kw_only=True)
class Nas201Options(SpaceOptions):
    """Options of NAS-Bench-201 cells and their supernet.

    Attributes:
        operations: Those that an edge may have; all if None.
        units: Channels of the first stage.
        cells_per_stage: Cells per stage of the network.
    """

    operations: tuple[str, ...] | None = None
    units: int = 4
    cells_per_stage: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(1, "units", "cells_per_stage")
        expect_subset("operation", self.operations, NAS201_OPERATIONS)


@SPACES.register
class Nas201SearchSpace(ImageSearchSpace):
    """The cells of NAS-Bench-201 on images: 5⁶ = 15,625, stacked to a classifier.

    Source: Dong and Yang 2020, arXiv:2001.00326; see `Nas201Space` and `supernet.Nas201Supernet`.
    """

    name: ClassVar[str] = "nas201"
    label: ClassVar[str] = "NAS-Bench-201 cells"
    Options: ClassVar[type[SpaceOptions]] = Nas201Options
    reading: ClassVar[str] = (
        "0 is the cell’s input, 3 its output; a node adds what comes in, and an edge of none is not drawn."
    )
    options: Nas201Options

    @cached_property
    def space(self) -> Nas201Space:
        """Of the operations asked for."""
        return Nas201Space(self.options.operations or NAS201_OPERATIONS)

    def _supernet(self) -> type[Nas201Supernet]:
        from forgetless.spaces.nas201.supernet import Nas201Supernet

        return Nas201Supernet
