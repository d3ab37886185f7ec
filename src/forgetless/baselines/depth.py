"""The deeper, the better."""

from __future__ import annotations

from typing import ClassVar

from forgetless.baselines._drawings import longest_path
from forgetless.baselines.base import BASELINES, Baseline, Subject


@BASELINES.register
class Depth(Baseline):
    """The most operations on any path through a cell, as it is drawn; summed over the kinds of cells.

    An arrow that skips, takes a mean or concatenates is no operation. Operations that reach no output are drawn in
    NAS-Bench-201, and count.
    """

    name: ClassVar[str] = "depth"

    @classmethod
    def score(cls, subject: Subject) -> float:
        """Σ over cells of the longest path.

        Args:
            subject: The architecture.
        """
        return float(sum(map(longest_path, subject.architecture.graphs().values())))
