"""The more operations, the better."""

from __future__ import annotations

from typing import ClassVar

from forgetless.baselines._drawings import operations_of
from forgetless.baselines.base import BASELINES, Baseline, Subject


@BASELINES.register
class Operations(Baseline):
    """The number of operations in the cells, as they are drawn: what is no skip, mean or concatenation."""

    name: ClassVar[str] = "operations"

    @classmethod
    def score(cls, subject: Subject) -> float:
        """How many there are.

        Args:
            subject: The architecture.
        """
        return float(len(operations_of(subject.architecture)))
