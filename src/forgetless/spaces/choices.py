"""A space of plain choices: the same number of options at every place, for supernets of one's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from forgetless.errors import expect_one_of
from forgetless.spaces.base import Architecture, Edge, Scanner, Space, expect_at_least_one, expect_count


@dataclass(frozen=True)
class Choices(Architecture):
    """One option for each place; prints as the options, with spaces between them.

    Args:
        choices: From the first place to the last.

    >>> print(Choices(("relu", "tanh")))
    relu tanh
    """

    choices: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.choices)

    def graphs(self) -> dict[str, tuple[Edge, ...]]:
        """A chain from place to place."""
        return {"chain": tuple(Edge(str(i), str(i + 1), choice) for i, choice in enumerate(self.choices))}


@dataclass(frozen=True)
class ChoiceSpace(Space[Choices]):
    """Every combination of one option for each place: K^D architectures.

    Args:
        num_places: D, at least 1.
        options: K words to choose from at each place.
        ordered: Whether they are sizes, from the smallest to the largest.

    Raises:
        InputError: If there is no place.

    >>> space = ChoiceSpace(3, ("relu", "tanh"))
    >>> space.size, space.encode(space.parse("relu tanh tanh"))
    (8, (0, 1, 1))
    """

    num_places: int
    options: tuple[str, ...]
    ordered: bool = field(default=False, repr=False)  # states of a search know the space by what it prints

    def __post_init__(self) -> None:
        expect_at_least_one("places", self.num_places)
        expect_at_least_one("options", len(self.options))

    @cached_property
    def num_choices(self) -> tuple[int, ...]:
        """As many for each place."""
        return (len(self.options),) * self.num_places

    @property
    def orders_sizes(self) -> bool:
        """As asked for."""
        return self.ordered

    def parse(self, text: str) -> Choices:
        """Read one option for each place.

        Args:
            text: What `str` printed.

        Raises:
            InputError: With the position of the first mistake.
        """
        scanner, found = Scanner(text), []
        for _ in range(self.num_places):
            scanner.skip_spaces()
            found.append(scanner.word("an option", self.options))
        scanner.end(f"the end after {self.num_places} options")
        return Choices(tuple(found))

    def _encode(self, architecture: Choices) -> tuple[int, ...]:
        expect_count("options", architecture.choices, self.num_places)
        for choice in architecture.choices:
            expect_one_of("option", choice, self.options)
        return tuple(map(self.options.index, architecture.choices))

    def _decode(self, decisions: tuple[int, ...]) -> Choices:
        return Choices(tuple(self.options[decision] for decision in decisions))
