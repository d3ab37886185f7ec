"""A score by chance: what any rule must be better than."""

from __future__ import annotations

import hashlib
from typing import ClassVar

from forgetless.baselines.base import BASELINES, Baseline, Subject


@BASELINES.register
class Random(Baseline):
    """A number that is uniform in [0, 1), and depends on the seed and the architecture's text alone."""

    name: ClassVar[str] = "random"

    @classmethod
    def score(cls, subject: Subject) -> float:
        """The first 53 bits of a hash, over 2⁵³.

        Args:
            subject: The architecture.
        """
        digest = hashlib.sha256(f"random {subject.seed} {subject.architecture}".encode()).digest()
        return (int.from_bytes(digest[:8]) >> 11) / 2**53
