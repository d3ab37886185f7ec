"""The 1,797 handwritten digits, 8 × 8, that come with scikit-learn."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetless.data.named import IMAGE_DATA

if TYPE_CHECKING:
    from forgetless.data.splits import ImageData, Labelled


@IMAGE_DATA.named("digits")
def load(data_dir: str | Path | None) -> ImageData:  # noqa: ARG001
    """Cut 1,037 for training, 200 for the Fisher, 200 for validation and 360 for the test."""
    return cut_digits("digits")


def cut_digits(name: str, derive: Callable[[str, Labelled], Labelled] | None = None) -> ImageData:
    """The scanned digits, or what is made of them, in the same four splits.

    Args:
        name: What the data is called.
        derive: Makes of a split what is learnt; see `assemble`. Pixels are whole numbers 0 … 16.
    """
    import numpy as np

    from forgetless.data.splits import Labelled, assemble

    pixels, labels = _pixels_and_labels()
    images = pixels.astype(np.uint8).reshape(-1, 1, 8, 8)
    train = Labelled(images, labels.astype(np.int64))
    classes = [str(digit) for digit in range(10)]
    return assemble(
        name, classes, {"train": train}, num_test=360, num_importance=200, num_validation=200, derive=derive
    )


@functools.cache
def _pixels_and_labels() -> Any:
    """Arrays (1797, 64) and (1797,), which scikit-learn has as a text; nobody may change them."""
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)
