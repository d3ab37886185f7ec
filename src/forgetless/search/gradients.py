"""An estimate of the Fisher information from gradients that training computes anyway."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Gradients:
    """The empirical Fisher of one model, estimated from the mean gradients of its k training batches.

    With ḡ_b the mean gradient of batch b of B examples, ḡ their mean and s² = Σ_b (ḡ_b − ḡ)²/(k − 1),

        F ≈ (B − 1/k) s² + ḡ²

    is unbiased where examples are independent and the weights stand still: B·s² estimates the variance of one example's
    gradient, ḡ² − s²/k the square of its mean. Since weights move while they train, it is somewhat larger.

    Args:
        weights: By name.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter]) -> None:
        self._weights = weights
        self._mean: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}  # Σ (ḡ_b − ḡ)², by Welford's update
        self._count = 0

    @torch.no_grad()
    def add(self) -> None:
        """Take in the gradients that the weights have now."""
        self._count += 1
        found = {name: weight.grad for name, weight in self._weights.items() if weight.grad is not None}
        if not self._mean:
            self._mean = {name: torch.zeros_like(gradient) for name, gradient in found.items()}
            self._squares = {name: torch.zeros_like(gradient) for name, gradient in found.items()}
        gradients = list(found.values())
        means, squares = list(self._mean.values()), list(self._squares.values())
        before = torch._foreach_sub(gradients, means)
        torch._foreach_add_(means, before, alpha=1 / self._count)
        after = torch._foreach_sub(gradients, means)
        torch._foreach_addcmul_(squares, before, after)

    @property
    def suffice(self) -> bool:
        """Whether there are enough for an estimate: two batches."""
        return self._count >= 2

    def fisher(self, batch_size: int) -> dict[str, Tensor]:
        """F by name; empty if the batches do not suffice.

        Args:
            batch_size: B.
        """
        if not self.suffice:
            return {}
        share = (batch_size - 1 / self._count) / (self._count - 1)
        return {name: self._squares[name] * share + mean.square() for name, mean in self._mean.items()}
