"""The 1,797 handwritten digits, 8 × 8, that come with scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from forgetless.data.named import IMAGE_DATA

if TYPE_CHECKING:
    from forgetless.data.splits import ImageData, Labelled

CLASSES = tuple(map(str, range(10)))
SIZES = {"num_test": 360, "num_importance": 200, "num_validation": 200}
"""Of the splits that are cut from all digits; 1,037 are left for training."""


def scanned_digits() -> Labelled:
    """All of them: pixels (1797, 1, 8, 8), whole numbers 0 … 16, and labels."""
    import numpy as np
    from sklearn.datasets import load_digits

    from forgetless.data.splits import Labelled

    pixels, labels = load_digits(return_X_y=True)
    return Labelled(pixels.astype(np.uint8).reshape(-1, 1, 8, 8), labels.astype(np.int64))


@IMAGE_DATA.named("digits")
def load(data_dir: str | Path | None) -> ImageData:  # noqa: ARG001
    """Cut 1,037 for training, 200 for the Fisher, 200 for validation and 360 for the test."""
    from forgetless.data.splits import assemble

    return assemble("digits", CLASSES, {"train": scanned_digits()}, **SIZES)
