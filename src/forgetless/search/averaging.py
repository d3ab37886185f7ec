"""The running average of a supernet's weights, which judges architectures in place of the newest weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class AverageWeights:
    """A running average of weights, and a context in which a module has it.

    After the n-th update

        w̄ ← w̄ + (w − w̄) / min(n, N)

    which is the mean of all updates up to n = N, and from there on forgets older ones by (1 − 1/N) per update. With
    N = ∞ it is the mean of all: Polyak and Juditsky 1992; over the end of a training, Izmailov et al. 2018
    (arXiv:1803.05407).

    Buffers are not averaged, since the statistics of batch normalisation at averaged weights are no average of
    statistics: a supernet that has them computes them anew for each architecture (`Supernet.recalibrate`).

    Args:
        module: Whose parameters are averaged.
        window: N, at least 1; ∞ if None.

    Attributes:
        number: n.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> average = AverageWeights(layer)
    >>> for value in (1.0, 2.0, 6.0):
    ...     _ = nn.init.constant_(layer.weight, value)
    ...     average.update()
    >>> with average.applied():
    ...     print(layer.weight.item())
    3.0
    >>> layer.weight.item()
    6.0
    """

    def __init__(self, module: nn.Module, window: int | None = None) -> None:
        self._module, self._window = module, window
        self._weights = dict(module.named_parameters())
        self._means: list[Tensor] = []
        self.number = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        weights = [weight.detach() for weight in self._weights.values()]
        self.number += 1
        if self.number == 1:
            self._means = [weight.clone() for weight in weights]
            return
        share = 1 / (self.number if self._window is None else min(self.number, self._window))
        torch._foreach_lerp_(self._means, weights, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the module has the averaged weights; before the first update, its own.

        At its end weights, buffers and mode are as before, and what a supernet computed from the averaged weights, such
        as batch statistics, is out of date.
        """
        if self.number == 0:
            yield
            return
        present = [weight.data for weight in self._weights.values()]
        buffers = [(buffer, buffer.clone()) for buffer in self._module.buffers()]
        try:
            self._put(self._means)
            yield
        finally:
            self._put(present)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)

    def _put(self, values: list[Tensor]) -> None:
        for weight, value in zip(self._weights.values(), values, strict=True):
            weight.data = value
        # By way of training mode, in which a supernet drops statistics of other weights.
        was_training = self._module.training
        self._module.train().train(was_training)

    def state_dict(self) -> dict[str, Any]:
        """What to go on from; torch.load reads it with weights_only=True."""
        return {"number": self.number, "means": dict(zip(self._weights, self._means, strict=False))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, of a module with the same weights.

        Args:
            state: From `state_dict`.
        """
        self.number = state["number"]
        means = (
            [state["means"][name].to(weight.device) for name, weight in self._weights.items()] if self.number else []
        )
        self._means = [mean.clone() for mean in means]
