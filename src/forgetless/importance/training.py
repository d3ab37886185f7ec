"""An estimate of the Fisher information from gradients that training computes anyway."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class TrainingFisher:
    """The empirical Fisher of one model, estimated from the mean gradients of its k training batches.

    With ḡ_b the mean gradient of batch b of B examples, ḡ their mean and s² = Σ_b (ḡ_b − ḡ)²/(k − 1),

        F ≈ (B − 1/k) s² + ḡ²

    is unbiased where examples are independent and the weights stand still: B·s² estimates the variance of one example's
    gradient, ḡ² − s²/k the square of its mean. Since weights move while they train, it is somewhat larger. It costs a
    few operations on the weights per batch, no forward or backward pass, and memory for two more numbers per weight.

    In a training loop, call `add` after `backward()`, before gradients are clipped and before the optimizer's step.

    Source: the two moments of a mean of B independent gradients, solved for those of one. McCandlish et al. 2018
    (arXiv:1812.06162), appendix A.1, estimate their sums over all weights from batches of two sizes. The running sums
    are Welford's (Technometrics 4(3), 1962). The square of the batch mean alone, which is called a Fisher elsewhere,
    is about F/B.

    Args:
        weights: The model's weights by name, as in `dict(model.named_parameters())`. Those that the loss does not
            depend on, whose gradients are None, have no estimate.

    >>> linear = nn.Linear(1, 1, bias=False)
    >>> estimate = TrainingFisher(dict(linear.named_parameters()))
    >>> for examples in ([[1.0], [3.0]], [[5.0], [7.0]]):
    ...     linear.zero_grad()
    ...     linear(torch.tensor(examples)).mean().backward()  # leaves 2, then 6
    ...     estimate.add()
    >>> estimate.fisher(batch_size=2)["weight"]  # (2 − 1/2) · 8 + 4²
    tensor([[28.]])
    """

    def __init__(self, weights: Mapping[str, nn.Parameter]) -> None:
        self._weights = weights
        self._mean: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}  # Σ (ḡ_b − ḡ)², by Welford's update
        self._count = 0

    @torch.no_grad()
    def add(self) -> None:
        """Take in the gradients that the weights have now: of the mean loss of one batch.

        Raises:
            ValueError: If other weights have a gradient than in the batches before. Nothing is changed then.
        """
        found = {name: weight.grad for name, weight in self._weights.items() if weight.grad is not None}
        if self._count == 0:
            self._mean = {name: torch.zeros_like(gradient) for name, gradient in found.items()}
            self._squares = {name: torch.zeros_like(gradient) for name, gradient in found.items()}
        if changed := found.keys() ^ self._mean.keys():
            raise ValueError(
                f"Expected gradients of the same weights in every batch, but got {min(changed)!r} in some only. "
                "Make one estimate per model, from batches that use all of its weights."
            )
        self._count += 1
        gradients = list(found.values())
        means, squares = list(self._mean.values()), list(self._squares.values())
        before = torch._foreach_sub(gradients, means)
        torch._foreach_add_(means, before, alpha=1 / self._count)
        after = torch._foreach_sub(gradients, means)
        torch._foreach_addcmul_(squares, before, after)

    @property
    def suffice(self) -> bool:
        """Whether there are enough batches for an estimate: two."""
        return self._count >= 2

    def fisher(self, batch_size: int) -> dict[str, Tensor]:
        """The estimate so far.

        Args:
            batch_size: B ≥ 1, examples per batch. What is one example is decided here, as in `diagonal_fisher`.

        Returns:
            Parameter name → F, in the weight's shape, type and device; empty if the batches do not suffice. The unit is
            loss² per weight².

        Raises:
            ValueError: If `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ValueError(
                f"Expected batch_size to be at least 1, but got {batch_size}. It is the examples per batch."
            )
        if not self.suffice:
            return {}
        share = (batch_size - 1 / self._count) / (self._count - 1)
        return {name: self._squares[name] * share + mean.square() for name, mean in self._mean.items()}
