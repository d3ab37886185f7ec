"""Labelled images cut into four disjoint splits, stratified by class and standardised.

The splits are drawn once, with a seed of their own, so that the test set is the same for every run whatever the
run's seed. Pixels stay 8-bit integers up to the last step, which standardises them with the training split's
mean and standard deviation.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from forgetless.errors import InputError, printable

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """Some of a data set's images, with their labels.

    Attributes:
        images: The pixels, (N, C, H, W) in float32, standardised with the training split's mean and standard
            deviation of each channel.
        labels: The class of each image as an index into `ImageData.classes`, (N,) in int64.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class ImageData:
    """Labelled images in four splits that share no image.

    Attributes:
        name: What tables and pictures call the data; "CIFAR-10 (JPEG copy)" is not "CIFAR-10".
        classes: The names of the classes, by label.
        train: For training weights.
        importance: Held out, for the Fisher only.
        validation: Held out, for stopping, for rewards and for choosing settings.
        test: For the numbers that are reported, and nothing else.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSplit
    importance: ImageSplit
    validation: ImageSplit
    test: ImageSplit

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of one image: channels, height and width in pixels."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)


@dataclass(frozen=True)
class Labelled:
    """Images before they are standardised: (N, C, H, W) in uint8, and the label of each."""

    images: Bytes
    labels: Indices

    def take(self, indices: Indices) -> "Labelled":
        """Return the images with these indices."""
        return Labelled(self.images[indices], self.labels[indices])


def stratified_cut(labels: Indices, num_cut: int, purpose: str) -> tuple[Indices, Indices]:
    """Draw `num_cut` examples so that each class keeps its share, the same ones in every run.

    Class c gives num_cut · N_c / N, rounded by the largest remainder, and at least one. The draw uses Python's
    Mersenne Twister, whose sequence is guaranteed to stay the same from one version to the next; numpy's and
    PyTorch's are not.

    Args:
        labels: The class of each example, (N,).
        num_cut: The number of examples wanted. A few more are drawn where classes would get none.
        purpose: The seed: what the examples are for.

    Returns:
        The indices of the examples that stay and of those that were drawn, both ascending.

    >>> stay, drawn = stratified_cut(np.array([0, 0, 0, 0, 1, 1, 1, 1]), 2, "test")
    >>> sorted([*stay, *drawn]) == list(range(8)), len(drawn)
    (True, 2)
    """
    classes, counts = np.unique(labels, return_counts=True)
    quotas = [Fraction(num_cut * int(count), len(labels)) for count in counts]
    shares = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda c: shares[c] - quotas[c])
    for c in by_remainder[: num_cut - sum(shares)]:
        shares[c] += 1
    dice = random.Random(f"forgetless {purpose}")
    keys = np.array([dice.random() for _ in labels])
    drawn = np.concatenate(
        [
            (members := np.flatnonzero(labels == c))[np.argsort(keys[members], kind="stable")][: max(share, 1)]
            for c, share in zip(classes, shares, strict=True)
        ]
    )
    stays = np.ones(len(labels), dtype=bool)
    stays[drawn] = False
    return np.flatnonzero(stays), np.sort(drawn)


def assemble(
    name: str,
    classes: Sequence[str],
    given: dict[str, Labelled],
    *,
    num_test: int = 0,
    num_importance: int,
    num_validation: int,
    derive: Callable[[str, Labelled], Labelled] | None = None,
) -> ImageData:
    """Cut the missing splits from the training images and standardise all four.

    Args:
        name: What the data is called.
        classes: The names of the classes, by label.
        given: The images of `train`, and of `test` and `validation` where the data has them.
        num_test: How many training images to hold out for the test, if no test images are given.
        num_importance: How many training images to hold out for the Fisher.
        num_validation: How many training images to hold out for validation, if none are given.
        derive: Makes of a split, given its name, what is learnt in its place: other images of the same ones, so that
            nothing of one split is in another. As it is if None.

    Returns:
        The four splits.

    Raises:
        InputError: If a class has too few images.
    """
    splits = dict(given)
    cuts = {"test": num_test, "importance": num_importance, "validation": num_validation}
    missing = {purpose: count for purpose, count in cuts.items() if purpose not in splits}
    _check_classes(name, classes, given, tuple(missing))
    train = given["train"]
    remaining = np.arange(len(train.labels))
    for purpose, count in missing.items():
        stay, drawn = stratified_cut(train.labels[remaining], count, purpose)
        splits[purpose], remaining = train.take(remaining[drawn]), remaining[stay]
    splits["train"] = train.take(remaining)
    if derive is not None:
        splits = {purpose: derive(purpose, part) for purpose, part in splits.items()}
    mean, deviation = _channel_statistics(splits["train"].images)

    def standardised(part: Labelled) -> ImageSplit:
        images = torch.from_numpy(part.images.astype(np.float32)).sub_(mean).div_(deviation)
        return ImageSplit(images, torch.from_numpy(part.labels))

    return ImageData(
        name=printable(name),
        classes=tuple(map(printable, classes)),
        train=standardised(splits["train"]),
        importance=standardised(splits["importance"]),
        validation=standardised(splits["validation"]),
        test=standardised(splits["test"]),
    )


def _check_classes(name: str, classes: Sequence[str], given: dict[str, Labelled], missing: tuple[str, ...]) -> None:
    """Refuse data in which a class cannot be in all four splits."""
    if len(classes) < 2:
        raise InputError(
            f"Expected {name} to have at least 2 classes, but got {len(classes)}. Make one folder for each class."
        )
    for split, part in given.items():
        needed = 1 + len(missing) if split == "train" else 1
        counts = np.bincount(part.labels, minlength=len(classes))
        for label, count in enumerate(counts):
            if count < needed:
                purposes = " and ".join((split, *missing)) if split == "train" else split
                raise InputError(
                    f"Expected at least {needed} images of class {classes[label]!r} in the {split} images of {name} "
                    f"(one each for {purposes}), but got {count}. Add images, or leave the class out."
                )


def _channel_statistics(images: Bytes) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of each channel, both (C, 1, 1), exactly rounded.

    The 256 possible values are counted, so that nothing is rounded before the end. A channel that is constant
    gets the deviation 1, which makes it zero everywhere instead of undefined.
    """
    values = np.arange(256, dtype=np.float64)
    means, deviations = [], []
    for channel in range(images.shape[1]):
        # bincount needs 8 bytes for each pixel: a thousand images at a time.
        counts = sum(
            (
                np.bincount(images[start : start + 1000, channel].reshape(-1), minlength=256)
                for start in range(0, len(images), 1000)
            ),
            start=np.zeros(256, dtype=np.int64),
        )
        mean = counts @ values / counts.sum()
        deviation = np.sqrt(counts @ (values - mean) ** 2 / counts.sum())
        means.append(mean)
        deviations.append(deviation if deviation > 0 else 1.0)
    shape = (-1, 1, 1)
    return torch.tensor(means).float().reshape(shape), torch.tensor(deviations).float().reshape(shape)
