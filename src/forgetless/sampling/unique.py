"""Architectures without isomorphic duplicates: each function trains equally often, however many notations it has."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from forgetless.errors import InputError
from forgetless.sampling.base import SAMPLERS, Sampler, SamplerOptions
from forgetless.spaces.base import A, Space

_MOST_LISTED = 20_000
"""Larger spaces are not gone through as a whole, which takes about a second for so many architectures."""
_MOST_DRAWS = 1_000


@dataclass(frozen=True, kw_only=True)
class UniqueSamplerOptions(SamplerOptions):
    """Sampling without duplicates has no options."""


@SAMPLERS.register
class UniqueSampler(Sampler[A]):
    """Draws functions, each once before any comes again, and of each a notation that is drawn uniformly.

    Uniform draws train a function with many notations, which is often a simple one, more than others. The space says
    what the same function is (`Space.canonical_form`). In a space of up to 20,000 architectures every function is
    drawn once per round. In a larger one architectures are drawn uniformly, and those whose function was drawn before
    are left out; a round ends when 1,000 draws in a row were.

    Source: Ning et al. 2021 (Evaluating Efficient Performance Estimators of Neural Architectures, NeurIPS 2021),
    de-isomorphic sampling. They train one notation of each function; here all are, because strategies propose, and
    shared weights judge, any of them.
    """

    name: ClassVar[str] = "unique"
    Options: ClassVar[type[SamplerOptions]] = UniqueSamplerOptions

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._left: list[int] = []  # of the round, in a space that is listed
        self._seen: dict[int, None] = {}  # in the order of drawing, in one that is not

    @classmethod
    def expect_space(cls, space: Space[Any]) -> None:
        """Refuse a space that does not tell which architectures are the same function.

        Args:
            space: What to choose from.

        Raises:
            InputError: If it is one.
        """
        if not space.has_canonical_form:
            raise InputError(
                f"Expected a space with canonical forms for the sampler unique, but got {space}. Take another sampler."
            )

    def next(self) -> A:
        """A function that is new in this round, in some notation."""
        import torch

        if self.space.size > _MOST_LISTED:
            return self._drawn()
        functions = distinct_functions(self.space)
        if not self._left:
            self._left = torch.randperm(len(functions), generator=self.generator).tolist()
        notations = functions[self._left.pop()]
        return self.space.decode(notations[int(torch.randint(len(notations), (), generator=self.generator))])

    def _drawn(self) -> A:
        for _ in range(_MOST_DRAWS):
            architecture = self.space.sample(self.generator)
            text = self.space.canonical_form(architecture)
            key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
            if key not in self._seen:
                break
        else:
            self._seen.clear()
        self._seen[key] = None
        return architecture

    def state_dict(self) -> dict[str, Any]:
        """The generator, and what is left of the round."""
        return super().state_dict() | {"left": list(self._left), "seen": list(self._seen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: From `state_dict`.
        """
        super().load_state_dict(state)
        self._left, self._seen = list(state["left"]), dict.fromkeys(state["seen"])


@lru_cache(maxsize=4)
def distinct_functions(space: Space[Any]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """The functions of a space, each as the decisions of all of its notations.

    Args:
        space: One with canonical forms.

    Returns:
        In the order of each function's first notation.

    >>> from forgetless.spaces.recurrent import RecurrentSpace
    >>> sum(len(notations) > 1 for notations in distinct_functions(RecurrentSpace(2)))
    6
    """
    found: dict[str, list[tuple[int, ...]]] = {}
    for architecture in space:
        found.setdefault(space.canonical_form(architecture), []).append(space.encode(architecture))
    return tuple(map(tuple, found.values()))
