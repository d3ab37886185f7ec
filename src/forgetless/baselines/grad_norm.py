"""The larger the first gradient, the better."""

from __future__ import annotations

from typing import ClassVar

from forgetless.baselines.base import BASELINES, Baseline, Subject


@BASELINES.register
class GradNorm(Baseline):
    """Σ over weight tensors w of ‖∂L/∂w‖₂, of the loss L of one training batch before the first step.

    Source: Abdelfattah et al. 2021, arXiv:2101.08134, section 3.2: the sum of Euclidean norms of the gradients. Here
    over all weights that the architecture uses, and not of convolutions and linear layers alone.
    """

    name: ClassVar[str] = "grad-norm"

    @classmethod
    def score(cls, subject: Subject) -> float:
        """The sum; weights that the loss does not reach add nothing.

        Args:
            subject: The architecture.
        """
        import torch

        loss = subject.task.loss_of(subject.supernet, subject.architecture)(subject.batch)
        weights = list(subject.supernet.used_parameters(subject.architecture).values())
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        return float(sum(float(gradient.norm()) for gradient in gradients if gradient is not None))
