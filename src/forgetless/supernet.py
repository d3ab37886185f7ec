"""What a search and a task ask of a supernet: one module that computes any architecture of a space."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Generic

from torch import Tensor, nn

from forgetless.spaces.base import A


class Supernet(nn.Module, ABC, Generic[A]):
    """Called with inputs and an architecture, it gives the outputs of that architecture.

    Attributes:
        outside_cell: How the names of those weights begin that every architecture uses, such as a classifier's:
            `--protect cell` leaves them out.
        inputs_at_a_time: How many inputs go through it at a time when it is evaluated; all if None. With more, the
            activations of an image network leave the CPU's cache, at twice the time.
    """

    outside_cell: ClassVar[tuple[str, ...]] = ()
    inputs_at_a_time: ClassVar[int | None] = None

    @abstractmethod
    def forward(self, inputs: Tensor, architecture: A) -> Any:
        """The outputs of an architecture.

        Args:
            inputs: A batch.
            architecture: A member of the space.
        """

    @abstractmethod
    def used_parameters(self, architecture: A) -> dict[str, nn.Parameter]:
        """The weights that an architecture computes with, and no others, by their names in `named_parameters()`.

        Args:
            architecture: A member of the space.

        Raises:
            InputError: If it is not a member.
        """

    def recalibrate(self, architecture: A, batches: Iterable[Tensor]) -> None:
        """Make the supernet ready to evaluate an architecture; only one with batch statistics has to.

        Args:
            architecture: The one that will be evaluated.
            batches: Training inputs.
        """
