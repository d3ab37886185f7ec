"""CIFAR-10, found in a local folder or downloaded once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from forgetless.data.named import IMAGE_DATA

if TYPE_CHECKING:
    from forgetless.data.splits import ImageData


@IMAGE_DATA.named("cifar10")
def load(data_dir: str | Path | None) -> ImageData:
    """See `forgetless.data.cifar10.load_cifar10`."""
    from forgetless.data.cifar10 import load_cifar10

    return load_cifar10(data_dir)
