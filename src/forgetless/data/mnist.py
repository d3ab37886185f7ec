"""MNIST, and the format of its files."""

import math
import struct
from pathlib import Path

import numpy as np

from forgetless.data.files import check_sha256, read_bytes
from forgetless.data.sources import Source, fetch
from forgetless.data.splits import Bytes, ImageData, Labelled, assemble
from forgetless.errors import InputError

_OSSCI = "https://ossci-datasets.s3.amazonaws.com/mnist"

# The name, the size and the SHA-256 of the content, and torchvision's MD5 of the .gz.
MNIST_FILES = {
    name: Source(
        paths=(f"MNIST/raw/{name}", f"MNIST/raw/{name}.gz", name, f"{name}.gz"),
        sha256=sha256,
        num_bytes=num_bytes,
        url=f"{_OSSCI}/{name}.gz",
        download_path=f"MNIST/raw/{name}.gz",
        download_hash=f"md5:{md5}",
        download_bytes=num_bytes,
    )
    for name, num_bytes, sha256, md5 in (
        (
            "train-images-idx3-ubyte",
            47_040_016,
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        ),
        (
            "train-labels-idx1-ubyte",
            60_008,
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "d53e105ee54ea40749a09fcbcd1e9432",
        ),
        (
            "t10k-images-idx3-ubyte",
            7_840_016,
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "9fb629c4189551a2d022fa330f9573f3",
        ),
        (
            "t10k-labels-idx1-ubyte",
            10_008,
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    )
}
MNIST_SIZE = 28  # pixels, height and width

_IDX_DIMENSIONS = {2049: 1, 2051: 3}  # magic number of unsigned bytes -> number of dimensions


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


def load_mnist(data_dir: str | Path | None) -> ImageData:
    """Find or download MNIST's four files and cut importance and validation from the training images.

    Args:
        data_dir: The folder that has them, or None; see `forgetless.data.sources.fetch`.

    Returns:
        The four splits; test is the official one.

    Raises:
        InputError: If a file is missing, damaged or not the published one.
    """
    given = {
        split: _read_mnist(
            MNIST_FILES[f"{prefix}-images-idx3-ubyte"], MNIST_FILES[f"{prefix}-labels-idx1-ubyte"], data_dir
        )
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }
    num_held_out = len(given["train"].labels) // 12  # 5,000 of 60,000
    classes = [str(digit) for digit in range(10)]
    return assemble("MNIST", classes, given, num_importance=num_held_out, num_validation=num_held_out)


def _read_mnist(images_source: Source, labels_source: Source, data_dir: str | Path | None) -> Labelled:
    """Read one pair of files, reporting a bad structure before a wrong checksum."""
    images_path, labels_path = fetch(images_source, data_dir), fetch(labels_source, data_dir)
    images_content = read_bytes(images_path, images_source.num_bytes)
    labels_content = read_bytes(labels_path, labels_source.num_bytes)
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
    return Labelled(images[:, None], labels.astype(np.int64))
