"""What a search chooses from: architectures, the spaces that hold them, and what a search is to know of a space.

An architecture is a frozen, hashable value that prints as one line of text and is read back by its space's `parse`.
A space is a fixed sequence of decisions, each with its own number of options; an architecture is one option per
decision. That is all that a strategy needs to know: a controller emits decisions in order, evolution changes one of
them, uniform sampling draws each of them. `size` counts sequences of decisions: two architectures that compute the
same function in different notation (an isomorphic graph, a node that does nothing) are two.

A `SearchSpace` is what registers: it makes the space and its supernet, and says what they are trained for.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, NoReturn, TypeVar

from forgetless.configuration import Options
from forgetless.errors import InputError, expect_one_of
from forgetless.registry import Kind, Registry

if TYPE_CHECKING:
    import torch

    from forgetless.supernet import Supernet


class Edge(NamedTuple):
    """One arrow of a drawn cell: from node, to node, and what happens on the way."""

    source: str
    target: str
    label: str


class Architecture(ABC):
    """One member of a space: frozen, hashable; `str()` prints it and the space's `parse` reads it back."""

    functions_in_nodes: ClassVar[bool] = False
    """Whether drawings write what a node computes into the node, not onto its arrows."""

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

    Attributes:
        decides_edges: Whether each decision is the operation of one edge, all with the same options, and the supernet
            takes a weight for each edge.
    """

    decides_edges: ClassVar[bool] = False

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

    @property
    def has_canonical_form(self) -> bool:
        """Whether the space tells which of its architectures are the same function; see `canonical_form`."""
        return False

    @property
    def orders_sizes(self) -> bool:
        """Whether each decision is a size, its options from the smallest to the largest."""
        return False

    def canonical_form(self, architecture: A) -> str:  # noqa: ARG002
        """A text that two architectures have in common if and only if they compute the same functions.

        These are all that an architecture, trained alone, can become: which of two equal branches comes first does not
        matter, which weights the supernet keeps for them does not either.

        Args:
            architecture: A member of this space.

        Raises:
            InputError: If the space has none.
        """
        raise InputError(
            f"Expected a space with canonical forms, but got {self}. Compare what str() prints in their place."
        )

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

    def published_table(self, name: str) -> Path | None:  # noqa: ARG002
        """Where a published table of this space's architectures lies, as a truth file; None if there is none.

        Args:
            name: What was given in the place of a file.

        Raises:
            InputError: If the space has a table of this name, but this machine does not.
        """
        return None


def _below(limit: int, generator: torch.Generator) -> int:
    """An integer drawn uniformly from 0 … limit − 1."""
    import torch

    return int(torch.randint(limit, (), generator=generator))


# ---- what a search is to know of a space -------------------------------------------------------------------------

SPACES: Registry[type[SearchSpace]] = Registry("space", "forgetless.spaces")
"""Every search space, by name."""


@dataclass(frozen=True, kw_only=True)
class SpaceOptions(Options):
    """Options of a space and of its supernet; those of one without any."""

    registry: ClassVar[Registry[Any]] = SPACES


class SearchSpace(Kind, ABC):
    """A space with its supernet, and what they are trained for.

    Args:
        options: Of this space; its defaults if None.

    Attributes:
        name: What commands and files call it.
        label: What reports call its architectures: `recurrent cells`.
        Options: The class of its options.
        task: The kind of task that its supernet learns, by its name.
        training: Defaults of the optimizer: `learning_rate` (by the name of the optimizer), `momentum`,
            `max_gradient_norm`; those left out are 0.001, 0 and none.
        reading: How to read a drawing of one of its cells, in one sentence.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    Options: ClassVar[type[SpaceOptions]]
    task: ClassVar[str]
    training: ClassVar[Mapping[str, Any]] = {}
    reading: ClassVar[str] = ""

    def __init__(self, options: SpaceOptions | None = None) -> None:
        self.options = (self.Options() if options is None else options).fitted()

    @property
    @abstractmethod
    def space(self) -> Space[Any]:
        """What is chosen from."""

    @abstractmethod
    def make_supernet(self, task: Any) -> Supernet[Any]:
        """A supernet for a task; its weights are drawn from the global random state.

        Args:
            task: Decides its inputs and outputs.
        """

    def memory_bytes(self, task: Any, copies: int) -> int:
        """About how much memory training takes at most, in float32: copies of the weights, and activations.

        Args:
            task: Decides inputs, outputs and the batch.
            copies: Numbers kept per weight.

        Returns:
            Bytes. Here, of the weights alone; a space that knows its activations adds them.
        """
        import torch

        with torch.device("meta"):
            return 4 * copies * sum(weight.numel() for weight in self.make_supernet(task).parameters())

    @property
    def size(self) -> str:
        """The sizes of the supernet in a few words, for reports."""
        return ", ".join(f"{name} {value}" for name, value in self.options.to_dict().items() if name != "name")

    @property
    def sizes(self) -> dict[str, object]:
        """The options that decide how much memory it takes, for a message."""
        return {name: value for name, value in self.options.to_dict().items() if type(value) is int}

    @classmethod
    def like(cls, text: str) -> Space[Any]:  # noqa: ARG003
        """The space of this kind, and of its usual options, that would have printed a text.

        Args:
            text: An architecture of this or another space.
        """
        return cls().space


# ---- reading and checking ----------------------------------------------------------------------------------------


class Scanner:
    """Reads a text from left to right and says where it went wrong."""

    _WORD = re.compile(r"[A-Za-z0-9_]+")
    _LONGEST_SHOWN = 160

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    @property
    def at_end(self) -> bool:
        """Whether all is read."""
        return self.position == len(self.text)

    def fail(self, expected: str, hint: str = "") -> NoReturn:
        """Refuse what is here."""
        word = self._WORD.match(self.text, self.position)
        found = "the end of the text" if self.at_end else repr(word[0] if word else self.text[self.position])
        longest = self._LONGEST_SHOWN
        shown = self.text if len(self.text) <= longest else self.text[:longest] + "…"
        raise InputError(
            f"Expected {expected} at position {self.position} of {shown!r}, but got {found}."
            + (f" {hint}" if hint else " Positions count from 0.")
        )

    def skip_spaces(self) -> None:
        """Go on to what is no space."""
        while not self.at_end and self.text[self.position].isspace():
            self.position += 1

    def literal(self, expected: str) -> None:
        """Read exactly this."""
        for place, character in enumerate(expected):
            if not self.text.startswith(character, self.position):
                self.fail(repr(expected[place:]))
            self.position += 1

    def word(self, what: str, choices: Sequence[str]) -> str:
        """Read one of some words."""
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
        """Refuse anything but spaces."""
        self.skip_spaces()
        if not self.at_end:
            self.fail(expected)


def expect_at_least_one(what: str, number: int) -> None:
    """Refuse a number below 1."""
    if number < 1:
        raise InputError(f"Expected at least 1 of the {what}, but got {number}. Choose a positive number.")


def expect_subset(what: str, chosen: Sequence[str] | None, known: Sequence[str]) -> None:
    """Refuse anything but one or more different ones of those that are known; None is all."""
    if chosen is None:
        return
    if not chosen or len(set(chosen)) != len(chosen):
        raise InputError(
            f"Expected one or more different {what}s, but got {', '.join(chosen) or 'none'}. Choose from "
            f"{', '.join(known)}."
        )
    for name in chosen:
        expect_one_of(what, name, known)


def expect_count(what: str, items: Sequence[object], number: int) -> None:
    """Refuse another number of items; a ValueError, which `Space.encode` tells with the architecture."""
    if len(items) != number:
        message = f"it has {len(items)} {what}, not {number}"
        raise ValueError(message)
