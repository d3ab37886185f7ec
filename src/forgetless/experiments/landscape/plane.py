"""A plane through A's shared weights: coordinates of a path, what lies outside, and the Fisher information in it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forgetless.errors import InputError

# Of the length of the longest candidate: what is left of a shorter one is rounding.
_NOTHING = 1e-6


@dataclass(frozen=True)
class Plane:
    """Two orthonormal directions u₁, u₂ of the space of shared weights; the origin is A's weights θ̂.

    Attributes:
        directions: (2, P), float64.
    """

    directions: Tensor

    def coordinates(self, moves: Tensor) -> Tensor:
        """Uv of each move v = θ − θ̂.

        Args:
            moves: (T, P).

        Returns:
            (T, 2), in the unit of the weights.
        """
        return moves.double() @ self.directions.T

    def outside(self, moves: Tensor) -> Tensor:
        """‖v − UᵀUv‖₂ of each move: how far it is from the plane.

        Args:
            moves: (T, P).

        Returns:
            (T,).
        """
        rest = moves.double() - self.coordinates(moves) @ self.directions
        distances: Tensor = torch.linalg.vector_norm(rest, dim=1)
        return distances

    def at(self, x: float, y: float) -> Tensor:
        """The move x u₁ + y u₂, (P,).

        Args:
            x: Along the first direction.
            y: Along the second.
        """
        return torch.tensor([x, y], dtype=torch.float64, device=self.directions.device) @ self.directions

    def form(self, fisher: Tensor) -> Tensor:
        """U diag(F) Uᵀ: at p = (x, y) A's loss is expected to have risen by ½ pᵀ M p.

        Args:
            fisher: Diagonal Fisher information of the shared weights, (P,).

        Returns:
            M, (2, 2).
        """
        return (self.directions * fisher.double()) @ self.directions.T


def plane_through(ends: Sequence[Tensor], others: Tensor) -> Plane:
    """The plane through A's weights and the ends of two paths, by Gram–Schmidt.

    Principal directions of all paths would show the longest one, which is the unprotected, and its bends; of a path
    under protection, which is shorter, little would be left. Through the ends of two arms each is shown at its full
    length where it counts, at its end, and the first axis is the way that unprotected training took. Where the second
    end lies on the line of the first, as that of frozen weights, the point of any path that is furthest from this line
    takes its place.

    Args:
        ends: Of two paths, (P,) each, as moves from A's weights.
        others: Points of all paths, (T, P).

    Returns:
        The plane; its directions point to the ends.

    Raises:
        InputError: If all points are on one line.
    """
    least = _NOTHING * float(torch.linalg.vector_norm(others.double(), dim=1).max())
    found: list[Tensor] = []
    for candidate in _candidates(ends, others, found):
        rest = _rest(candidate.double()[None], found)[0]
        length = float(torch.linalg.vector_norm(rest))
        if length > least:
            found.append(rest / length)
        if len(found) == 2:
            return Plane(torch.stack(found))
    raise InputError(
        "Expected paths of the shared weights that span a plane, but all their points are on one line. Train B longer, "
        "or choose a protection that lets them move."
    )


def _candidates(ends: Sequence[Tensor], others: Tensor, found: list[Tensor]) -> Iterator[Tensor]:
    yield from ends
    for _ in range(2):  # what is furthest depends on what was found so far
        yield others[torch.linalg.vector_norm(_rest(others.double(), found), dim=1).argmax()]


def _rest(moves: Tensor, directions: Sequence[Tensor]) -> Tensor:
    for _ in range(2):  # twice, so that nearly parallel ends leave orthogonal directions
        for direction in directions:
            moves = moves - (moves @ direction)[:, None] * direction
    return moves


def ellipse(form: Sequence[Sequence[float]], rise: float, num_points: int = 400) -> NDArray[np.float64]:
    """The points p with ½ pᵀ M p = rise.

    Args:
        form: M, (2, 2), symmetric and not negative.
        rise: In nats, above 0.
        num_points: On the ellipse, the last of which is the first.

    Returns:
        (num_points, 2). In a direction in which M is 0 the ellipse is very long instead of infinite.

    >>> abs(ellipse([[2.0, 0.0], [0.0, 0.5]], 1.0)).max(axis=0).round(3).tolist()  # half axes √(2 · rise / curvature)
    [1.0, 2.0]
    """
    values, vectors = np.linalg.eigh(np.asarray(form, dtype=np.float64))
    radii = np.sqrt(2 * rise / np.maximum(values, max(1e-12 * values[-1], np.finfo(np.float64).tiny)))
    angles = np.linspace(0, 2 * np.pi, num_points)
    points: NDArray[np.float64] = (np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii) @ vectors.T
    return points
