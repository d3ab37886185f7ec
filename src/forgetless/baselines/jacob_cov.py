"""The less alike a network's responses to different images, the better."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from forgetless.baselines._images import why_no_images
from forgetless.baselines.base import BASELINES, Baseline, Subject
from forgetless.spaces.base import SearchSpace

if TYPE_CHECKING:
    from torch import Tensor

_SMALL = 1e-5  # k of the formula, as its authors have it


@BASELINES.register
class JacobCov(Baseline):
    """How little the Jacobians of different images correlate.

    J (B, D) has a row for each image: the gradient of the sum of its logits with respect to its pixels. With v the
    eigenvalues of the correlation matrix of the rows (B, B),

        score = −Σ_i [ log(v_i + k) + 1/(v_i + k) ],    k = 10⁻⁵

    Source: Mellor et al. 2020, arXiv:2006.04647v1, section 3, as Abdelfattah et al. 2021 (arXiv:2101.08134) use it.
    """

    name: ClassVar[str] = "jacob-cov"

    @classmethod
    def why_undefined(cls, space: SearchSpace) -> str:
        """Words and nodes have no pixels.

        Args:
            space: With its supernet.
        """
        return why_no_images(space, "It is a gradient with respect to pixels")

    @classmethod
    def score(cls, subject: Subject) -> float:
        """The score; NaN where a Jacobian is constant, and so has no correlation.

        Args:
            subject: The architecture.
        """
        import torch

        images = subject.batch[0].detach().clone().requires_grad_()
        outputs = subject.supernet(images, subject.architecture)
        (jacobian,) = torch.autograd.grad(outputs.sum(), images, allow_unused=True)
        return math.nan if jacobian is None else jacobian_score(jacobian.flatten(1))


def jacobian_score(jacobian: Tensor) -> float:
    """The formula of `JacobCov`.

    Args:
        jacobian: (B, D) a row for each image.

    Returns:
        The score; NaN where a row is constant.

    >>> import torch
    >>> round(jacobian_score(torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])), 3)  # v = (1, 1)
    -2.0
    """
    import torch

    correlation = torch.corrcoef(jacobian.double())
    if not bool(correlation.isfinite().all()):
        return math.nan
    # Rounding makes the smallest eigenvalues of a singular matrix slightly negative.
    eigenvalues = torch.linalg.eigvalsh(correlation).clamp(min=0.0) + _SMALL
    return -float((eigenvalues.log() + 1 / eigenvalues).sum())
