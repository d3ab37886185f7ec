"""What the spaces of convolutional cells have in common; `_images` has that of their supernets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.spaces.base import SearchSpace

if TYPE_CHECKING:
    from forgetless.spaces._images import ImageSupernet


class ImageSearchSpace(SearchSpace):
    """A space whose supernet is a stack of cells that classifies images."""

    task: ClassVar[str] = "images"
    training: ClassVar[Mapping[str, Any]] = {
        "learning_rate": {"sgd": 0.1},
        "momentum": 0.9,
        "max_gradient_norm": 5.0,
    }
    options: Any

    @abstractmethod
    def _supernet(self) -> Any:
        """The class of its supernet, an `ImageSupernet`, which also knows how much memory one takes."""

    def _sizes(self, task: Any) -> tuple[Any, ...]:
        """What the supernet is made from."""
        return task.image_shape, task.num_classes, self.options.units, self.options.cells_per_stage

    def make_supernet(self, task: Any) -> ImageSupernet[Any]:
        """A stack of cells.

        Args:
            task: Decides image shape and classes.
        """
        supernet: ImageSupernet[Any] = self._supernet()(*self._sizes(task))
        return supernet

    def memory_bytes(self, task: Any, copies: int) -> int:
        """Weights, and the activations of a batch.

        Args:
            task: Decides image shape, classes and batch.
            copies: Numbers kept per weight.

        Returns:
            Bytes.
        """
        kind = self._supernet()
        return int(kind.memory_bytes(*self._sizes(task), batch_size=task.batch_size, copies=copies))

    @property
    def size(self) -> str:
        """Channels."""
        return f"{self.options.units} channels"
