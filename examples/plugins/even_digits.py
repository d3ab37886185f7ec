"""A data set of one's own: the even digits of scikit-learn's."""

import numpy as np
from sklearn.datasets import load_digits

from forgetless.data import IMAGE_DATA
from forgetless.data.splits import ImageData, Labelled, assemble


@IMAGE_DATA.named("even-digits")
def load(data_dir: str | None) -> ImageData:
    """Five classes, in four splits that share no image; `data_dir` is what --data-dir says."""
    pixels, labels = load_digits(return_X_y=True)
    even = labels % 2 == 0
    images = pixels[even].astype(np.uint8).reshape(-1, 1, 8, 8)  # (N, channels, height, width), whole numbers
    given = {"train": Labelled(images, labels[even].astype(np.int64) // 2)}  # "test" and "validation" may be given too
    classes = ["0", "2", "4", "6", "8"]
    return assemble("even digits", classes, given, num_test=200, num_importance=100, num_validation=100)
