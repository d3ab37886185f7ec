"""The more synaptic flow through the untrained network, the better."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar

from forgetless.baselines._images import why_no_images
from forgetless.baselines.base import BASELINES, Baseline, Subject
from forgetless.spaces.base import SearchSpace

if TYPE_CHECKING:
    from torch import nn


@BASELINES.register
class Synflow(Baseline):
    """Synaptic flow: R is the sum of the logits of an image of ones, with every weight θ replaced by |θ|.

        score = Σ_θ θ ∂R/∂θ

    over the weights that the architecture uses, normalisation left out. In float64: the flow of a deep network is
    larger than float32 holds.

    Source: Tanaka et al. 2020, arXiv:2006.05467, equation 1 and section 6; as a score of architectures, without batch
    normalisation, Abdelfattah et al. 2021, arXiv:2101.08134, section 3.2.
    """

    name: ClassVar[str] = "synflow"

    @classmethod
    def why_undefined(cls, space: SearchSpace) -> str:
        """Words and nodes cannot be replaced by ones; gates do not pass the flow on.

        Args:
            space: With its supernet.
        """
        return why_no_images(space, "It needs an input of ones and layers that keep the flow, as those of images")

    @classmethod
    def score(cls, subject: Subject) -> float:
        """The score.

        Args:
            subject: The architecture.
        """
        import torch

        # Of a copy, so that the subject's own weights stay as they are.
        network = copy.deepcopy(subject.supernet).double()
        _leave_out_normalisation(network)
        with torch.no_grad():
            for weight in network.parameters():
                weight.abs_()
        ones = torch.ones_like(subject.batch[0][:1], dtype=torch.float64)
        flow = network(ones, subject.architecture).sum()
        weights = list(network.used_parameters(subject.architecture).values())
        gradients = torch.autograd.grad(flow, weights, allow_unused=True)
        pairs = zip(weights, gradients, strict=True)
        return float(sum(float((w.detach() * g).sum()) for w, g in pairs if g is not None))


def _leave_out_normalisation(network: nn.Module) -> None:
    """Every layer of normalisation gives back what it is given."""
    from torch import nn

    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm):
            # No hook: a layer of batch normalisation refuses one image of one pixel before any hook of it runs.
            module.forward = nn.Identity().forward  # type: ignore[method-assign]
