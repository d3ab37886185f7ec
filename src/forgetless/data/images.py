"""Labelled images in four disjoint splits: train, importance, validation and test.

The splits are drawn once, with a seed of their own, so that the test set is the same for every run whatever the
run's seed. Pixels stay 8-bit integers up to the last step, which standardises them with the training split's
mean and standard deviation.
"""

import dataclasses
import io
import logging
import math
import random
import struct
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from forgetless.data import sources
from forgetless.data.sources import (
    FileTree,
    Source,
    check_sha256,
    existing_path,
    fetch,
    file_hash,
    open_tree,
    read_bytes,
)
from forgetless.errors import InputError

IMAGE_DATA = ("digits", "mnist", "cifar10")
"""The names that `load_images` knows, besides paths."""

_OSSCI = "https://ossci-datasets.s3.amazonaws.com/mnist"

# The name, the SHA-256 of the content, and torchvision's MD5 of the .gz.
MNIST_FILES = {
    name: Source(
        paths=(f"MNIST/raw/{name}", f"MNIST/raw/{name}.gz", name, f"{name}.gz"),
        sha256=sha256,
        url=f"{_OSSCI}/{name}.gz",
        download_path=f"MNIST/raw/{name}.gz",
        download_hash=f"md5:{md5}",
    )
    for name, sha256, md5 in (
        (
            "train-images-idx3-ubyte",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        ),
        (
            "train-labels-idx1-ubyte",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "d53e105ee54ea40749a09fcbcd1e9432",
        ),
        (
            "t10k-images-idx3-ubyte",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "9fb629c4189551a2d022fa330f9573f3",
        ),
        (
            "t10k-labels-idx1-ubyte",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    )
}
MNIST_SIZE = 28  # pixels, height and width

CIFAR10_ARCHIVE = Source(
    paths=("cifar-10-binary.tar.gz",),
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    download_path="cifar-10-binary.tar.gz",
    download_hash="md5:c32a1d4ab5d03f1284b67883e8d87530",
)
CIFAR10_FOLDER = "cifar-10-batches-bin"
CIFAR10_BATCHES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_IMAGES_PER_BATCH = 10_000
_CIFAR10_RECORD = 1 + 3 * 32 * 32  # a label, then the red, the green and the blue plane, in bytes

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
IMAGE_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow's names; nothing that runs a program
SPLIT_FOLDERS = {
    "train": "train",
    "test": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}

_IDX_DIMENSIONS = {2049: 1, 2051: 3}  # magic number of unsigned bytes -> number of dimensions
_CACHE_VERSION = 2  # raised when decoding changes, so that no older cache is read

Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]

_log = logging.getLogger(__name__)


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


def load_images(name: str, data_dir: str | Path | None = None) -> ImageData:
    """Load a data set of labelled images in four disjoint splits, stratified by class.

    | name | train | importance | validation | test |
    |---|---|---|---|---|
    | `digits` | 1,037 | 200 | 200 | 360 |
    | `mnist` | 50,000 | 5,000 | 5,000 | the official 10,000 |
    | `cifar10` | 40,000 | 5,000 | 5,000 | the official 10,000 |
    | a path | the rest | 10 % | 10 %, or `valid` | 20 %, or `test` |

    A folder (or a .zip archive) has one folder for each class, or `train`, `test` and `valid` (also `validation`
    or `val`) with one folder for each class in them; only `train` is needed. Percentages are of the training images.
    `digits` comes with scikit-learn. `mnist` and `cifar10` are found in a local folder first (see
    `forgetless.data.sources.search_folders`), and otherwise downloaded once.

    Args:
        name: One of `digits`, `mnist`, `cifar10`, or the path of a folder or .zip archive of images. A name
            goes before a folder of the same name, which can be written `./mnist`.
        data_dir: The folder that has the named data set. Nothing is downloaded when it is given.

    Returns:
        The four splits. Every call gives the same images in the same order.

    Raises:
        InputError: If the name is unknown, files are missing, damaged or not the published ones, images are
            unreadable or of different sizes, or a class has too few of them for four splits.

    >>> data = load_images("digits")
    >>> data.image_shape, data.num_classes
    ((1, 8, 8), 10)
    >>> [len(split.labels) for split in (data.train, data.importance, data.validation, data.test)]
    [1037, 200, 200, 360]
    >>> load_images("minst")
    Traceback (most recent call last):
    forgetless.errors.InputError: Expected images ... but got 'minst'. Did you mean 'mnist'?
    """
    if name == "digits":
        return _load_digits()
    if name == "mnist":
        return _load_mnist(data_dir)
    if name == "cifar10":
        return _load_cifar10(data_dir)
    path = existing_path(name, "images (or the path of a folder or .zip of them)", IMAGE_DATA)
    path = path.resolve()
    return _load_tree(path, name=path.stem if path.is_file() else path.name)


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


@dataclass(frozen=True)
class _Labelled:
    """Images before they are standardised: (N, C, H, W) in uint8, and the label of each."""

    images: Bytes
    labels: Indices

    def take(self, indices: Indices) -> "_Labelled":
        return _Labelled(self.images[indices], self.labels[indices])


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


def _assemble(
    name: str,
    classes: Sequence[str],
    given: dict[str, _Labelled],
    *,
    num_test: int = 0,
    num_importance: int,
    num_validation: int,
) -> ImageData:
    """Cut the missing splits from the training images and standardise all four.

    Args:
        name: What the data is called.
        classes: The names of the classes, by label.
        given: The images of `train`, and of `test` and `validation` where the data has them.
        num_test: How many training images to hold out for the test, if no test images are given.
        num_importance: How many training images to hold out for the Fisher.
        num_validation: How many training images to hold out for validation, if none are given.

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
    mean, deviation = _channel_statistics(splits["train"].images)

    def standardised(part: _Labelled) -> ImageSplit:
        images = torch.from_numpy(part.images.astype(np.float32)).sub_(mean).div_(deviation)
        return ImageSplit(images, torch.from_numpy(part.labels))

    return ImageData(
        name=name,
        classes=tuple(classes),
        train=standardised(splits["train"]),
        importance=standardised(splits["importance"]),
        validation=standardised(splits["validation"]),
        test=standardised(splits["test"]),
    )


def _check_classes(name: str, classes: Sequence[str], given: dict[str, _Labelled], missing: tuple[str, ...]) -> None:
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


def _load_digits() -> ImageData:
    from sklearn.datasets import load_digits  # here, because importing it takes a quarter of a second

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.astype(np.uint8).reshape(-1, 1, 8, 8)  # whole numbers 0..16
    train = _Labelled(images, labels.astype(np.int64))
    classes = [str(digit) for digit in range(10)]
    return _assemble("digits", classes, {"train": train}, num_test=360, num_importance=200, num_validation=200)


def read_idx(path: Path) -> Bytes:
    """Read a file of MNIST's format: unsigned bytes with one dimension (labels) or three (images).

    The header is a magic number (2049 for one dimension, 2051 for three) and the dimensions, as 32-bit
    integers, the highest byte first; the bytes follow, the last dimension fastest.

    Args:
        path: The file, plain or `.gz`.

    Returns:
        The array, (N,) or (N, H, W).

    Raises:
        InputError: If the file cannot be read, has another magic number, or is shorter or longer than its
            header says.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "labels")
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    ...     read_idx(path)
    array([7, 2, 1], dtype=uint8)
    """
    return _parse_idx(read_bytes(path), path)


def _parse_idx(content: bytes, path: Path) -> Bytes:
    magic = int.from_bytes(content[:4], "big")
    if len(content) < 4 or magic not in _IDX_DIMENSIONS:
        found = f"the magic number {magic}" if len(content) >= 4 else f"{len(content)} bytes"
        raise InputError(
            f"Expected {path} to begin with the magic number 2049 (labels) or 2051 (images), but got {found}. "
            "It is not a file of MNIST's format: replace it."
        )
    header = 4 + 4 * _IDX_DIMENSIONS[magic]
    if len(content) < header:
        raise InputError(
            f"Expected {path} to have a header of {header} bytes, but got {len(content)} bytes in all. "
            "The file is truncated: replace it."
        )
    shape = struct.unpack(f">{_IDX_DIMENSIONS[magic]}I", content[4:header])
    num_values = math.prod(shape)
    if len(content) != header + num_values:
        kind = "truncated" if len(content) < header + num_values else "followed by trailing bytes"
        raise InputError(
            f"Expected {path} to have {header + num_values} bytes for the dimensions {shape} in its header, "
            f"but got {len(content)}. The file is {kind}: replace it."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def _load_mnist(data_dir: str | Path | None) -> ImageData:
    given = {
        split: _read_mnist(
            MNIST_FILES[f"{prefix}-images-idx3-ubyte"], MNIST_FILES[f"{prefix}-labels-idx1-ubyte"], data_dir
        )
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }
    num_held_out = len(given["train"].labels) // 12  # 5,000 of 60,000
    classes = [str(digit) for digit in range(10)]
    return _assemble("MNIST", classes, given, num_importance=num_held_out, num_validation=num_held_out)


def _read_mnist(images_source: Source, labels_source: Source, data_dir: str | Path | None) -> _Labelled:
    """Read one pair of files, reporting a bad structure before a wrong checksum."""
    images_path, labels_path = fetch(images_source, data_dir), fetch(labels_source, data_dir)
    images_content, labels_content = read_bytes(images_path), read_bytes(labels_path)
    images, labels = _parse_idx(images_content, images_path), _parse_idx(labels_content, labels_path)
    if images.ndim != 3 or images.shape[1:] != (MNIST_SIZE, MNIST_SIZE):
        raise InputError(
            f"Expected {images_path} to have the dimensions (N, {MNIST_SIZE}, {MNIST_SIZE}), "
            f"but got {images.shape}. Replace the file."
        )
    if labels.shape != (len(images),):
        raise InputError(
            f"Expected {labels_path} to have the dimensions {(len(images),)}, one label for each image of "
            f"{images_path}, but got {labels.shape}. Replace the file."
        )
    if labels.size and labels.max() > 9:
        raise InputError(
            f"Expected the labels in {labels_path} to be 0 to 9, but got {labels.max()}. Replace the file."
        )
    check_sha256(images_content, images_path, images_source.sha256)
    check_sha256(labels_content, labels_path, labels_source.sha256)
    return _Labelled(images[:, None], labels.astype(np.int64))


def _load_cifar10(data_dir: str | Path | None) -> ImageData:
    """Look for the binary folder, the binary archive, the JPEG archive and the JPEG folder, then download."""
    for folder in sources.search_folders(data_dir):
        if (folder / CIFAR10_FOLDER).is_dir():
            return _assemble_cifar10(_read_cifar10_folder(folder / CIFAR10_FOLDER))
        archive = folder / CIFAR10_ARCHIVE.paths[0]
        if archive.is_file() and folder != sources.cache_folder():  # `fetch` renews a damaged cached archive
            return _assemble_cifar10(_read_cifar10_archive(archive))
        for copy in (folder / "cifar10-jpeg.zip", folder / "cifar10"):
            if copy.exists():
                return _load_tree(copy, "CIFAR-10 (JPEG copy)", expected_classes=CIFAR10_CLASSES)
    any_form = (CIFAR10_FOLDER, *CIFAR10_ARCHIVE.paths, "cifar10-jpeg.zip", "cifar10")
    path = fetch(dataclasses.replace(CIFAR10_ARCHIVE, paths=any_form), data_dir)
    return _assemble_cifar10(_read_cifar10_archive(path))


def _assemble_cifar10(given: dict[str, _Labelled]) -> ImageData:
    num_held_out = len(given["train"].labels) // 10  # 5,000 of 50,000
    return _assemble("CIFAR-10", CIFAR10_CLASSES, given, num_importance=num_held_out, num_validation=num_held_out)


def _read_cifar10_folder(folder: Path) -> dict[str, _Labelled]:
    return _join_cifar10({name: _parse_cifar10(read_bytes(folder / name), folder / name) for name in CIFAR10_BATCHES})


def _read_cifar10_archive(path: Path) -> dict[str, _Labelled]:
    """Read the six files straight from the archive; a bad structure is reported before a wrong checksum."""
    batches = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            # One pass in the archive's own order: going back in a gzip stream means starting again.
            for entry in archive:
                member = PurePosixPath(entry.name)
                stream = archive.extractfile(entry) if member.name in CIFAR10_BATCHES else None
                if stream is not None:
                    batches[member.name] = _parse_cifar10(stream.read(), path / member)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise InputError(f"Expected {path} to be a whole .tar.gz archive, but got {error}. Replace it.") from error
    for name in CIFAR10_BATCHES:
        if name not in batches:
            raise InputError(f"Expected {path} to have {CIFAR10_FOLDER}/{name}, but got no such file. Replace it.")
    algorithm, _, checksum = str(CIFAR10_ARCHIVE.download_hash).partition(":")
    if (found := file_hash(path, algorithm)) != checksum:
        raise InputError(
            f"Expected {path} to have the {algorithm} checksum {checksum}, but got {found}. "
            "The file is damaged or not the original: replace it."
        )
    return _join_cifar10(batches)


def _join_cifar10(batches: dict[str, _Labelled]) -> dict[str, _Labelled]:
    *train, test = (batches[name] for name in CIFAR10_BATCHES)
    images, labels = [part.images for part in train], [part.labels for part in train]
    return {"train": _Labelled(np.concatenate(images), np.concatenate(labels)), "test": test}


def _parse_cifar10(content: bytes, path: Path) -> _Labelled:
    """Read records of one label byte and 3 × 32 × 32 pixel bytes."""
    expected = CIFAR10_IMAGES_PER_BATCH * _CIFAR10_RECORD
    if len(content) != expected:
        raise InputError(
            f"Expected {path} to have {expected} bytes ({CIFAR10_IMAGES_PER_BATCH} records of {_CIFAR10_RECORD}), "
            f"but got {len(content)}. Replace the file."
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, _CIFAR10_RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= len(CIFAR10_CLASSES):
        raise InputError(f"Expected the labels in {path} to be 0 to 9, but got {labels.max()}. Replace the file.")
    return _Labelled(records[:, 1:].reshape(-1, 3, 32, 32), labels)


def _load_tree(path: Path, name: str, expected_classes: tuple[str, ...] | None = None) -> ImageData:
    """Load a folder or .zip archive of images by class, or by split and class.

    Args:
        path: The folder or archive.
        name: What the data is called.
        expected_classes: The classes there must be, with a test split of their own; None for any.

    Returns:
        The four splits.

    Raises:
        InputError: If the images cannot be read, or are not in the folders they should be in.
    """
    classes, given = _read_zip(path) if path.is_file() else _read_tree(path)
    if expected_classes is not None and (classes != expected_classes or "test" not in given):
        raise InputError(
            f"Expected {path} to have folders train and test with the classes {', '.join(expected_classes)}, "
            f"but got {' and '.join(given)} with {', '.join(classes)}. Complete it, or load it by its path."
        )
    num_images = len(given["train"].labels)
    num_test = 0 if "test" in given else round(num_images / 5)
    num_held_out = round((num_images - num_test) / 10)
    return _assemble(name, classes, given, num_test=num_test, num_importance=num_held_out, num_validation=num_held_out)


def _read_zip(path: Path) -> tuple[tuple[str, ...], dict[str, _Labelled]]:
    """Read an archive of images, or the decoded copy of it that an earlier call left in the cache.

    Decoding CIFAR-10's 60,000 JPEG files takes seconds. The cache is keyed by the archive's content, and any
    damage to it only means that the archive is decoded again.
    """
    cached = sources.cache_folder() / "decoded" / f"{file_hash(path, 'sha256')}-v{_CACHE_VERSION}.npz"
    if cached.is_file():
        try:
            # Opened here, because np.load does not close a damaged file that it opened.
            with cached.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                splits = [str(split) for split in arrays["splits"]]
                classes = tuple(str(label) for label in arrays["classes"])
                return classes, {
                    split: _Labelled(arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in splits
                }
        except (*sources.ZIP_ERRORS, KeyError) as error:
            _log.info("The decoded copy %s is damaged (%s) and is made again.", cached, error)
    classes, given = _read_tree(path)
    arrays = {"splits": np.array(list(given)), "classes": np.array(classes)}
    for split, part in given.items():
        arrays |= {f"{split}_images": part.images, f"{split}_labels": part.labels}
    try:
        sources.write_atomically(cached, lambda stream: np.savez(stream, **arrays))
    except OSError as error:  # the cache only saves time: a full or read-only disk is no reason to stop
        _log.info("The decoded copy %s could not be written: %s.", cached, error)
    return classes, given


def _read_tree(path: Path) -> tuple[tuple[str, ...], dict[str, _Labelled]]:
    """Decode every image of a folder or archive, in an order that is shuffled but the same in every run.

    The classes are the sorted names of the class folders.
    """
    with open_tree(path) as tree:
        placed = _place(tree)
        classes = tuple(sorted({label for _, label, _ in placed}))
        first = placed[0][2]
        decoded = [_decode(tree.read(name), path / name) for _, _, name in placed]
    channels = 3 if any(image.ndim == 3 for image in decoded) else 1
    for (_, _, name), image in zip(placed, decoded, strict=True):
        if image.shape[:2] != decoded[0].shape[:2]:
            expected, found = ("×".join(map(str, shown.shape[:2])) for shown in (decoded[0], image))
            raise InputError(
                f"Expected every image in {path} to have {expected} pixels (height × width) like {first}, "
                f"but got {found} in {name}. Bring them to one size."
            )
    label_of = {label: number for number, label in enumerate(classes)}
    given = {}
    for split in sorted({split for split, _, _ in placed}):
        chosen = [index for index, place in enumerate(placed) if place[0] == split]
        # Sorted by class, the first images of a split would be of one class; what uses a part of it must see them all.
        random.Random(f"forgetless order {split}").shuffle(chosen)
        pixels = np.empty((len(chosen), *decoded[0].shape[:2], channels), dtype=np.uint8)  # (N, H, W, C)
        for row, index in enumerate(chosen):
            image = decoded[index]
            pixels[row] = image if image.ndim == 3 else image[:, :, None]  # a gray one fills all channels
        labels = np.array([label_of[placed[index][1]] for index in chosen], dtype=np.int64)
        given[split] = _Labelled(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), labels)
    return classes, given


def _place(tree: FileTree) -> list[tuple[str, str, str]]:
    """Return the split, the class and the name of every image in a tree, sorted by name.

    Args:
        tree: The files.

    Returns:
        One triple for each image. Without a folder `train` that has class folders, the split is `train`.

    Raises:
        InputError: If there are no images, or one is not in a class folder.
    """
    names = [name for name in tree.names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    if not names:
        raise InputError(
            f"Expected {tree.path} to have images ({', '.join(sorted(IMAGE_SUFFIXES))}) in one folder for each "
            f"class, but got none among {len(tree.names)} files. Check the path."
        )
    parts = [PurePosixPath(name).parts for name in names]
    # An archive often has everything in one folder of its own name.
    outer = {part[0] for part in parts}
    if len(outer) == 1 and not outer & SPLIT_FOLDERS.keys() and min(map(len, parts)) > 2:
        parts = [part[1:] for part in parts]
    by_split = any(part[0] == "train" and len(part) > 2 for part in parts)
    placed = []
    for name, part in zip(names, parts, strict=True):
        split = SPLIT_FOLDERS.get(part[0]) if by_split else "train"
        inside = part[1:] if by_split else part
        if split is None or len(inside) < 2:
            form = f"one of the folders {', '.join(SPLIT_FOLDERS)} and a class folder" if by_split else "a class folder"
            raise InputError(
                f"Expected every image in {tree.path} to be in {form}, but got {name}. Move it, or remove it."
            )
        placed.append((split, inside[0], name))
    return placed


def _decode(content: bytes, path: Path) -> Bytes:
    """Decode one image to (H, W) if it is gray, to (H, W, 3) otherwise; transparency is dropped."""
    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            if image.mode in {"1", "L", "LA", "La"}:
                return np.asarray(image if image.mode == "L" else image.convert("L"))
            if image.mode in {"RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}:
                return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
            if image.mode in {"P", "PA"}:
                pixels = np.asarray(image.convert("RGBA"))[:, :, :3]
                gray = bool((pixels == pixels[:, :, :1]).all())  # a palette says nothing about colour
                return pixels[:, :, 0] if gray else pixels
            mode = image.mode
    # SyntaxError is what Pillow raises on a broken PNG.
    except (
        OSError,
        EOFError,
        SyntaxError,
        ValueError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise InputError(f"Expected {path} to be an image, but got {error}. Replace or remove it.") from error
    raise InputError(
        f"Expected {path} to have 8 bits for each channel, but got Pillow's mode {mode!r}. Convert the image."
    )
