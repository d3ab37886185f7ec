"""Scanned digits made harder: turned, sheared, scaled, shifted, cluttered and noisy, on 12 × 12 pixels.

A benchmark needs a task that its architectures do not all solve, and a test split that tells them apart. The 1,797
scanned digits are cut into the splits of `digits` first; then several images are made of each, so that no digit is in
two splits. All is drawn from a fixed seed and computed in whole numbers, so that every machine has the same bytes.
"""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import TYPE_CHECKING

from forgetless.data.named import IMAGE_DATA
from forgetless.data.sets.digits import cut_digits

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from forgetless.data.splits import ImageData, Labelled

    Integers = npt.NDArray[np.int64]

SIZE = 12
COPIES = {"train": 5, "importance": 5, "validation": 10, "test": 10}
"""How many images are made of each digit."""

_PIECE = 4
_GREY = 15  # a scan's 0 … 16 become 0 … 240
_NOISE = 24
_ONE = 256  # matrices count in 256ths


@IMAGE_DATA.named("digits-hard")
def load(data_dir: str | Path | None) -> ImageData:  # noqa: ARG001
    """Make 5,185 for training, 1,000 for the Fisher, 2,000 for validation and 3,600 for the test."""
    return cut_digits("digits-hard", harder)


def harder(purpose: str, scans: Labelled) -> Labelled:
    """The images that are made of one split's scans.

    Each is a scan under a random affine map, with a 4 × 4 piece of a scan of the same split laid over it at a random
    place, where the brighter pixel wins, and noise on every pixel: the sum of two uniform draws from −12 … 12.

    Args:
        purpose: The split, which is the seed.
        scans: (N, 1, 8, 8) in 0 … 16, with labels.

    Returns:
        (N · copies, 1, 12, 12) in 0 … 255, the copies of a scan one after the other, with its label.
    """
    import numpy as np

    from forgetless.data.splits import Labelled

    copies, dice = COPIES[purpose], Dice(f"forgetless digits-hard {purpose}")
    pixels = scans.images[:, 0].astype(np.int64)
    number = len(pixels) * copies
    images = mapped(np.repeat(pixels, copies, axis=0), *random_maps(dice, number), SIZE)
    images = np.maximum(images, _random_pieces(dice, pixels, number))
    noise = dice.below(_NOISE // 2 + 1, (2, *images.shape)) + dice.below(_NOISE // 2 + 1, (2, *images.shape))
    changed = np.clip(images + noise[0] - noise[1], 0, 255).astype(np.uint8)
    return Labelled(changed[:, None], np.repeat(scans.labels, copies))


class Dice:
    """Whole numbers from Python's Mersenne Twister, whose sequence stays the same from one version to the next.

    Args:
        seed: A text.
    """

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def below(self, limit: int, shape: tuple[int, ...]) -> Integers:
        """Numbers drawn uniformly from 0 … limit − 1, up to one part in 2³² / limit.

        Args:
            limit: Below 2³¹.
            shape: Of the array.
        """
        import numpy as np

        words = np.frombuffer(self._random.randbytes(4 * math.prod(shape)), "<u4")
        return (words.astype(np.int64) * limit >> 32).reshape(shape)


def random_maps(dice: Dice, number: int) -> tuple[Integers, Integers]:
    """Maps from a place in the new image to one in the scan, in whole numbers.

    The scan is turned by −45° … 45° in steps of 3°, sheared by up to a quarter, scaled so that a pixel of the image is
    0.75 to 1.3 pixels of the scan, and shifted by up to 1.5 of these.

    Args:
        dice: Where the randomness comes from.
        number: N.

    Returns:
        Matrices (N, 2, 2) in 256ths, and shifts (N, 2) in 512ths of a pixel of the scan.
    """
    import numpy as np

    degrees = 3 * (dice.below(31, (number,)) - 15)
    angles = {angle: math.radians(angle) for angle in range(-45, 48, 3)}
    cosine = np.array([round(_ONE * math.cos(angles[int(angle)])) for angle in degrees])
    sine = np.array([round(_ONE * math.sin(angles[int(angle)])) for angle in degrees])
    shear = dice.below(129, (number,)) - 64
    scale = 192 + dice.below(142, (number,))
    turned = np.stack([cosine, -sine, sine, cosine], 1).reshape(-1, 2, 2)
    sheared = np.stack([np.full(number, _ONE), shear, np.zeros_like(shear), np.full(number, _ONE)], 1)
    matrices = turned @ sheared.reshape(-1, 2, 2) * scale[:, None, None] // _ONE**2
    return matrices, dice.below(1537, (number, 2)) - 768


def mapped(scans: Integers, matrices: Integers, shifts: Integers, size: int) -> Integers:
    """Images whose pixel at p, from the centre, is the scan at A p + shift, from its centre, by bilinear interpolation.

    Args:
        scans: (N, S, S) in 0 … 16; around them all is 0.
        matrices: A, (N, 2, 2), in 256ths; of (row, column).
        shifts: (N, 2), in 512ths of a pixel of the scan.
        size: Of the new images.

    Returns:
        (N, size, size) in 0 … 240, rounded half up.
    """
    import numpy as np

    halves = 2 * np.arange(size) - (size - 1)  # from the centre, in half pixels: with A in 256ths, 512ths of a pixel
    grid = np.stack(np.meshgrid(halves, halves, indexing="ij"))  # (2, size, size)
    first = (scans.shape[1] - 1) * _ONE
    places = np.einsum("nij,jrc->nirc", matrices, grid) + shifts[:, :, None, None] + first
    whole, part = np.divmod(places, 2 * _ONE)
    framed = np.pad(scans, ((0, 0), (1, 1), (1, 1)))
    number, last = np.arange(len(scans))[:, None, None], framed.shape[1] - 1
    total = np.zeros(whole[:, 0].shape, dtype=np.int64)
    for down, across in itertools.product((0, 1), repeat=2):
        row, column = (np.clip(whole[:, axis] + step + 1, 0, last) for axis, step in ((0, down), (1, across)))
        weight = [part[:, axis] if step else 2 * _ONE - part[:, axis] for axis, step in ((0, down), (1, across))]
        total += weight[0] * weight[1] * framed[number, row, column]
    unit = (2 * _ONE) ** 2
    return (total * _GREY + unit // 2) // unit


def _random_pieces(dice: Dice, scans: Integers, number: int) -> Integers:
    """Empty images (number, SIZE, SIZE), each with a piece of a scan somewhere."""
    import numpy as np

    which = dice.below(len(scans), (number, 1, 1))
    source = dice.below(scans.shape[1] - _PIECE + 1, (2, number, 1, 1))
    target = dice.below(SIZE - _PIECE + 1, (2, number, 1, 1))
    rows, columns = np.arange(_PIECE)[:, None], np.arange(_PIECE)
    images = np.zeros((number, SIZE, SIZE), dtype=np.int64)
    cut = scans[which, source[0] + rows, source[1] + columns]
    images[np.arange(number)[:, None, None], target[0] + rows, target[1] + columns] = _GREY * cut
    return images
