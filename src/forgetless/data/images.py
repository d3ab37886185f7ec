"""Labelled images by name or path, in four disjoint splits, and their augmentation."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from forgetless.data.image_folders import load_tree
from forgetless.data.named import IMAGE_DATA
from forgetless.data.sources import existing_path
from forgetless.data.splits import ImageData, ImageSplit
from forgetless.errors import InputError

__all__ = ["ImageData", "ImageSplit", "load_images", "random_crop_and_flip"]


def load_images(name: str, data_dir: str | Path | None = None) -> ImageData:
    """Load a data set of labelled images in four disjoint splits, stratified by class.

    | name | train | importance | validation | test |
    |---|---|---|---|---|
    | `digits` | 1,037 | 200 | 200 | 360 |
    | `digits-hard` | 5,185 | 1,000 | 2,000 | 3,600 |
    | `mnist` | 50,000 | 5,000 | 5,000 | the official 10,000 |
    | `cifar10` | 40,000 | 5,000 | 5,000 | the official 10,000 |
    | a path | the rest | 10 % | 10 %, or `valid` | 20 %, or `test` |

    A folder (or a .zip archive) has one folder for each class, or `train`, `test` and `valid` (also `validation`
    or `val`) with one folder for each class in them; only `train` is needed. Percentages are of the training images.
    `digits` comes with scikit-learn, and `digits-hard` is made of it. `mnist` and `cifar10` are found in a local folder
    first (see `forgetless.data.sources.search_folders`), and otherwise downloaded once.

    Args:
        name: One of `digits`, `digits-hard`, `mnist`, `cifar10`, or the path of a folder or .zip archive of images. A
            name goes before a folder of the same name, which can be written `./mnist`.
        data_dir: The folder that has the named data set. Nothing is downloaded when it is given.

    Returns:
        The four splits. Every call gives the same images in the same order.

    Raises:
        InputError: If the name is unknown, files are missing, damaged, too large or not the published ones, images
            are unreadable or of different sizes, or a class has too few of them for four splits.

    >>> data = load_images("digits")
    >>> data.image_shape, data.num_classes
    ((1, 8, 8), 10)
    >>> [len(split.labels) for split in (data.train, data.importance, data.validation, data.test)]
    [1037, 200, 200, 360]
    >>> load_images("minst")
    Traceback (most recent call last):
    forgetless.errors.InputError: Expected images ... but got 'minst'. Did you mean 'mnist'?
    """
    if name in IMAGE_DATA:
        return IMAGE_DATA[name](data_dir)
    path = existing_path(name, "images (or the path of a folder or .zip of them)", IMAGE_DATA)
    path = path.resolve()
    return load_tree(path, name=path.name if path.is_dir() else path.stem)


def random_crop_and_flip(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Shift each image of a batch by up to `padding` pixels and mirror half of them, left to right.

    Each image is padded with zeros (the mean, for standardised images) on its four sides, and a window of its
    own size is cut out of it at one of the (2·padding + 1)² places, all equally likely. Each image has its own
    place and its own coin for the mirror. This is the augmentation of He et al., *Deep Residual Learning for
    Image Recognition*, CVPR 2016, section 4.2, done for a whole batch with one gather.

    Args:
        images: The batch, (B, C, H, W), on any device, of any type.
        padding: The number of pixels on each side, at least 0; 0 leaves only the mirror.
        generator: Where the randomness comes from, on any device.

    Returns:
        The changed batch, (B, C, H, W), of the same type and on the same device.

    Raises:
        InputError: If `images` does not have four dimensions or `padding` is negative.

    >>> image = torch.arange(4.0).reshape(1, 1, 2, 2)
    >>> random_crop_and_flip(image, 0, torch.Generator().manual_seed(1))
    tensor([[[[1., 0.],
              [3., 2.]]]])
    """
    if images.ndim != 4:
        raise InputError(
            f"Expected images to have shape (B, C, H, W), but got {tuple(images.shape)}. Add the missing dimensions."
        )
    if padding < 0:
        raise InputError(f"Expected padding to be at least 0, but got {padding}. Use 0 for no shift.")
    batch, channels, height, width = images.shape
    device = images.device

    def draw(num_values: int) -> Tensor:
        values = torch.randint(num_values, (batch, 1), generator=generator, device=generator.device)
        return values.to(device)

    rows = torch.arange(height, device=device) + draw(2 * padding + 1)  # (B, H), in the padded image
    columns = torch.arange(width, device=device).expand(batch, width)
    columns = torch.where(draw(2) == 1, columns.flip(1), columns) + draw(2 * padding + 1)  # (B, W)
    padded_width = width + 2 * padding
    pixels = (rows[:, :, None] * padded_width + columns[:, None, :]).reshape(batch, 1, height * width)
    padded = F.pad(images, (padding,) * 4).flatten(2)  # (B, C, (H + 2p)(W + 2p))
    return padded.gather(2, pixels.expand(-1, channels, -1)).reshape(images.shape)
