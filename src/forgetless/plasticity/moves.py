"""Which shared weights an optimizer's steps have moved, and how far a gradient moves them."""

from collections.abc import Iterable
from operator import is_
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from forgetless.plasticity.metric import learning_rate
from forgetless.plasticity.places import Places

Moved = list[list[tuple[list[int], float]]]
"""Of each parameter group of an optimizer, places among the shared weights with the sum of their learning rates."""


class _GroupMoves:
    """The shared weights that moved in a parameter group; the same list as long as the same weights move.

    Args:
        parameters: Of the group.
        places: Of all shared weights.
    """

    def __init__(self, parameters: list[Tensor], places: Places) -> None:
        self._index = index = places.index
        self._parameters = list(parameters)
        self._lack = [p.grad is None for p in parameters]
        self.places = [index[id(p)] for p in parameters if p.grad is not None and id(p) in index]

    def are_of(self, parameters: list[Tensor], places: Places) -> bool:
        """Whether the same weights have moved again."""
        return (
            self._index is places.index
            and len(parameters) == len(self._parameters)
            and all(map(is_, parameters, self._parameters))
            and [p.grad is None for p in parameters] == self._lack
        )


class Steps:
    """Steps of an optimizer that are to be followed together."""

    def __init__(self) -> None:
        self._groups: list[_GroupMoves] = []
        self._noted: list[list[tuple[list[int], float]]] = []

    def __len__(self) -> int:
        return len(self._noted)

    def note(self, places: Places, optimizer: Optimizer) -> None:
        """Take note of one more step: weights with a gradient have moved, by the learning rates of their groups.

        Args:
            places: The shared weights.
            optimizer: After its step.
        """
        groups: list[_GroupMoves] = []
        for g, group in enumerate(optimizer.param_groups):
            known = self._groups[g] if g < len(self._groups) else None
            is_same = known is not None and known.are_of(group["params"], places)
            groups.append(known if known is not None and is_same else _GroupMoves(group["params"], places))
        self._groups = groups
        rates = map(learning_rate, optimizer.param_groups)
        self._noted.append([(moves.places, rate) for moves, rate in zip(groups, rates, strict=True)])

    def take(self) -> Moved:
        """What the noted steps have moved together; they are forgotten."""
        noted, self._noted = self._noted, []
        num_groups = max(map(len, noted), default=0)
        return [_together([step[g] for step in noted if g < len(step)]) for g in range(num_groups)]

    def clear(self) -> None:
        """Forget the noted steps."""
        self._noted = []

    def state(self) -> list[Any]:
        """The noted steps, in lists of numbers."""
        return [[[list(places), rate] for places, rate in step] for step in self._noted]

    def load(self, state: Iterable[Any]) -> None:
        """Take the steps of a state.

        Args:
            state: From `state`.
        """
        self._noted = [[(list(places), float(rate)) for places, rate in step] for step in state]


def _together(steps: list[tuple[list[int], float]]) -> list[tuple[list[int], float]]:
    """Places by the sum of their learning rates over steps: one list, where the same weights moved in each."""
    first = steps[0][0]
    if all(places is first for places, _ in steps):
        return [(first, sum(rate for _, rate in steps))]
    sums: dict[int, float] = {}
    for places, rate in steps:
        for place in places:
            sums[place] = sums.get(place, 0.0) + rate
    together: dict[float, list[int]] = {}
    for place, total in sums.items():
        together.setdefault(total, []).append(place)
    return [(places, total) for total, places in together.items()]
