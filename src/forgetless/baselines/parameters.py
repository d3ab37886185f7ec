"""The more weights, the better."""

from __future__ import annotations

from typing import ClassVar

from forgetless.baselines.base import BASELINES, Baseline, Subject


@BASELINES.register
class Parameters(Baseline):
    """The number of weights that an architecture computes with.

    Source: the baseline of Abdelfattah et al. 2021 (arXiv:2101.08134) and of Ning et al. 2021 (NeurIPS 2021).
    """

    name: ClassVar[str] = "parameters"

    @classmethod
    def score(cls, subject: Subject) -> float:
        """Σ over used weight tensors of their sizes.

        Args:
            subject: The architecture.
        """
        return float(sum(weight.numel() for weight in subject.supernet.used_parameters(subject.architecture).values()))
