"""What every protection offers a training loop, and the one that protects nothing."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

FisherOf = Callable[[nn.Module], Mapping[str, Tensor]]


class Protection(ABC):
    """Keeps what earlier models need of shared weights while later models train.

    A loop trains each model inside `during(optimizer)` and calls `consolidate` after it.

    Args:
        shared_parameters: The weights that several models use.
        alpha: Strength, at least 0; 0 protects nothing.

    Attributes:
        uses_alpha: Whether the strength means anything to this method.
    """

    uses_alpha: ClassVar[bool] = False

    def __init__(self, shared_parameters: Iterable[Tensor], alpha: float = 0.0) -> None:
        self.shared_parameters = list(shared_parameters)
        self.alpha = alpha

    @abstractmethod
    def during(self, optimizer: Optimizer) -> contextlib.AbstractContextManager[None]:
        """A context in which the optimizer trains the next model.

        Args:
            optimizer: Of the next model's weights, shared ones among them.
        """

    @abstractmethod
    def consolidate(self, model: nn.Module, fisher_of: FisherOf) -> None:
        """Note that a model was trained and is to be kept from now on.

        Args:
            model: The model just trained.
            fisher_of: Computes the model's diagonal Fisher by parameter name, for the methods that need it.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later, but the weights."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: From `state_dict`.
        """


class NoProtection(Protection):
    """Plain training: the weights go where the present model's loss sends them."""

    @contextlib.contextmanager
    def during(self, optimizer: Optimizer) -> Iterator[None]:  # noqa: ARG002
        """A context that does nothing."""
        yield

    def consolidate(self, model: nn.Module, fisher_of: FisherOf) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: there is nothing to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""
