"""What every protection offers a training loop and may ask about a trained model, and the one that does nothing."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

Loss = Callable[[Any], Tensor]
"""Training batch → the mean loss of one model on it, a differentiable scalar; it may carry a state between batches."""

Decisions = tuple[int, ...]
"""What tells a model from the others that share its weights: an architecture's encoding, or its place in a chain."""


@dataclass(frozen=True)
class Evidence:
    """What a protection may ask about the model just trained; each is computed when it is called for, or never.

    Attributes:
        fisher: The model's diagonal Fisher information by its own parameter names.
        batches: Held-out pairs (inputs, targets) that nothing else uses, the same at each call. After the call the
            model can be evaluated on them in eval mode.
        loss: Maps (outputs, targets) of such a batch to its mean loss, a scalar.
        loss_of: Makes the loss of this model on training batches, with a state of its own.
        decisions: What tells this model from the others; () if nothing does.
    """

    fisher: Callable[[], Mapping[str, Tensor]]
    batches: Callable[[], Iterable[tuple[Any, Tensor]]]
    loss: Callable[[Any, Tensor], Tensor]
    loss_of: Callable[[], Loss]
    decisions: Decisions = ()


class Protection(ABC):
    """Keeps what earlier models need of shared weights while later models train.

    A loop trains each model inside one `during(optimizer)`, adds `extra_loss` to each batch's loss, and calls
    `consolidate` after it. Only weights that an earlier, consolidated model used are protected.

    Args:
        shared_parameters: The weights that several models use.
        alpha: Strength, at least 0; 0 protects nothing.

    Attributes:
        strength: The option that an experiment's configuration has for the strength; None if the method has none.
        symbol: What the strength is called in tables and figures.
        decays: Whether a smaller strength protects less, so that it may decay over epochs.
        options: The keywords of the constructor that `make_protection` passes on.
        uses_fisher: Whether `consolidate` asks for the Fisher information.
        watches: Whether a model can be consolidated only if it was trained inside `during`, the first one too.
    """

    strength: ClassVar[str | None] = None
    symbol: ClassVar[str] = "α"
    decays: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ()
    uses_fisher: ClassVar[bool] = False
    watches: ClassVar[bool] = False

    def __init__(self, shared_parameters: Iterable[Tensor], alpha: float = 0.0) -> None:
        self.shared_parameters = list(shared_parameters)
        self.alpha = alpha

    @property
    def moves_weights(self) -> bool:
        """Whether `consolidate` changes the shared weights."""
        return False

    @abstractmethod
    def during(self, optimizer: Optimizer) -> contextlib.AbstractContextManager[None]:
        """A context in which the optimizer trains the next model, from its first step to its last.

        Args:
            optimizer: Of the next model's weights, shared ones among them.
        """

    def extra_loss(self, batch: Any) -> Tensor | None:  # noqa: ARG002
        """What earlier models add to the next model's loss on a training batch, inside `during`.

        Args:
            batch: The batch that the next model's loss is taken on.

        Returns:
            A differentiable scalar, or None for nothing.
        """
        return None

    @abstractmethod
    def consolidate(self, model: nn.Module, evidence: Evidence) -> None:
        """Note that a model was trained and is to be kept from now on.

        Args:
            model: The model just trained.
            evidence: What may be asked about it.
        """

    def penalty(self) -> float:
        """The quadratic penalty at the present weights, in the unit of the loss; 0 for methods without one."""
        return 0.0

    def reset(self) -> None:  # noqa: B027 (a method that holds nothing by strength has nothing to give up)
        """Hold nothing until the next `consolidate`; frozen weights stay frozen."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later, but the weights; torch.load reads it with weights_only=True."""

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

    def consolidate(self, model: nn.Module, evidence: Evidence) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: there is nothing to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""
