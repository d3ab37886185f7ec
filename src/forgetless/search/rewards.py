"""What the shared weights say of architectures: errors, rewards, and the loss that a strategy differentiates."""

import contextlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from forgetless import ranks
from forgetless.search.averaging import AverageWeights
from forgetless.supernet import Supernet
from forgetless.tasks import Task
from forgetless.tasks.base import SplitName


class Rewards:
    """Errors and rewards of the architectures of a supernet, with its weights as they are when it is asked.

    Args:
        task: The data.
        supernet: The shared weights.
        num_batches: On which each is evaluated; all of the split if None.
        average: The weights that rewards are measured with; the newest if None.
        by_loss: Whether rewards are made of the loss, not of the error.

    Attributes:
        num_losses: How many batches the strategy has differentiated since `begin`.
    """

    def __init__(
        self,
        task: Task[Any],
        supernet: Supernet[Any],
        num_batches: int | None,
        average: AverageWeights | None = None,
        *,
        by_loss: bool = False,
    ) -> None:
        self._by_loss = by_loss
        self._task, self._supernet, self._num_batches, self._average = task, supernet, num_batches, average
        self._first, self.num_losses = 0, 0

    def begin(self, first: int, num_losses: int = 0) -> None:
        """At the beginning of an epoch, or within one that is gone on with.

        Args:
            first: The number of the first batch that the strategy differentiates.
            num_losses: How many of the epoch it has differentiated.
        """
        self._first, self.num_losses = first, num_losses

    def error(self, architecture: Any, split: SplitName) -> float:
        """The error of an architecture, with the newest weights.

        Args:
            architecture: A member of the space.
            split: On which part of the data.
        """
        return self._task.error(self._supernet, split, architecture, self._num_batches)

    def errors(self, architectures: Sequence[Any], split: SplitName) -> list[float]:
        """The errors of some architectures, each measured by one of the processes that train together.

        Args:
            architectures: Members of the space.
            split: On which part of the data.
        """
        return ranks.here().each(architectures, lambda architecture: self.error(architecture, split))

    def of(self, architecture: Any) -> float:
        """What the strategy learns of an architecture, measured on the reward split.

        Args:
            architecture: A member of the space.
        """
        with self._average.applied() if self._average is not None else contextlib.nullcontext():
            if self._by_loss:
                loss = self._task.held_out_loss(self._supernet, "reward", architecture, self._num_batches)
                return self._task.reward_of_loss(loss)
            return self._task.reward(self.error(architecture, "reward"))

    def of_all(self, architectures: Sequence[Any]) -> list[float]:
        """Rewards in order; an architecture that occurs twice is evaluated once, by one of the processes.

        Args:
            architectures: Members of the space.
        """
        distinct = list(dict.fromkeys(architectures))
        known = dict(zip(distinct, ranks.here().each(distinct, self.of), strict=True))
        return [known[architecture] for architecture in architectures]

    def loss(self, architecture: Any, edge_weights: Tensor) -> Tensor:
        """What a strategy that uses gradients differentiates: batch after batch of the reward split.

        It is taken at the newest weights, whether or not rewards are measured with averaged ones.

        Args:
            architecture: A member of the space.
            edge_weights: (edges,), what each edge's output is multiplied by.
        """
        number = self._first + self.num_losses
        self.num_losses += 1
        return self._task.weighted_loss(self._supernet, architecture, edge_weights, number)
