"""MNIST, found in a local folder or downloaded once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from forgetless.data.named import IMAGE_DATA

if TYPE_CHECKING:
    from forgetless.data.splits import ImageData


@IMAGE_DATA.named("mnist")
def load(data_dir: str | Path | None) -> ImageData:
    """See `forgetless.data.mnist.load_mnist`."""
    from forgetless.data.mnist import load_mnist

    return load_mnist(data_dir)
