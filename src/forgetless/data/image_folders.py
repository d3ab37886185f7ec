"""Images in folders by class, or by split and class, in a folder or a .zip archive."""

import io
import logging
import os
import random
import warnings
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from forgetless.data import sources
from forgetless.data.files import (
    MAX_RATIO,
    file_hash,
    kind_of,
    open_regular,
    ratio_limit,
    reason_of,
    write_atomically,
)
from forgetless.data.splits import Bytes, ImageData, Labelled, assemble
from forgetless.data.trees import ZIP_ERRORS, FileTree, open_tree
from forgetless.errors import InputError

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
IMAGE_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow's names; nothing that runs a program
SPLIT_FOLDERS = {
    "train": "train",
    "test": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "training": "train",
    "testing": "test",
}
"""Splits by their folders' names, in small letters; in a path they may have others."""

MAX_IMAGE_BYTES = 2**28
"""The most bytes that the file of one image may have: 256 MiB."""

MAX_IMAGE_PIXELS = 2**24
"""The most pixels that one image may have: 4096 × 4096."""

MAX_PIXELS = 2**31
"""The most pixels that all images may have: 2 to 6 GiB as 8-bit integers, and four times as much in float32."""

_CACHE_VERSION = 3  # raised when decoding changes, so that no older cache is read

_log = logging.getLogger(__name__)


def load_tree(path: Path, name: str, expected_classes: tuple[str, ...] | None = None) -> ImageData:
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
    classes, given = _read_tree(path) if kind_of(path) == "folder" else _read_zip(path)
    if expected_classes is not None and (classes != expected_classes or "test" not in given):
        raise InputError(
            f"Expected {path} to have folders train and test with the classes {', '.join(expected_classes)}, "
            f"but got {' and '.join(given)} with {', '.join(classes)}. Complete it, or load it by its path."
        )
    num_images = len(given["train"].labels)
    num_test = 0 if "test" in given else round(num_images / 5)
    num_held_out = round((num_images - num_test) / 10)
    return assemble(name, classes, given, num_test=num_test, num_importance=num_held_out, num_validation=num_held_out)


def _read_zip(path: Path) -> tuple[tuple[str, ...], dict[str, Labelled]]:
    """Read an archive of images, or the decoded copy of it that an earlier call left in the cache.

    Decoding CIFAR-10's 60,000 JPEG files takes seconds. The cache is keyed by the archive's content, and any
    damage to it only means that the archive is decoded again.
    """
    cached = sources.cache_folder() / "decoded" / f"{file_hash(path, 'sha256')}-v{_CACHE_VERSION}.npz"
    try:
        if kind_of(cached) is not None:
            return _load_decoded(cached)
    except (*ZIP_ERRORS, KeyError, SyntaxError, TypeError) as error:  # an InputError is a ValueError
        _log.info("The decoded copy %s is damaged (%s) and is made again.", cached, error)
    classes, given = _read_tree(path)
    arrays: dict[str, Any] = {"splits": np.array(list(given)), "classes": np.array(classes)}
    for split, part in given.items():
        arrays |= {f"{split}_images": part.images, f"{split}_labels": part.labels}
    try:
        write_atomically(cached, lambda stream: np.savez(stream, **arrays))
    except OSError as error:  # the cache only saves time: a full or read-only disk is no reason to stop
        _log.info("The decoded copy %s could not be written: %s.", cached, error)
    return classes, given


def _load_decoded(path: Path) -> tuple[tuple[str, ...], dict[str, Labelled]]:
    """Read a decoded copy, which is an uncompressed archive of arrays.

    Raises:
        ValueError: If it is not what was written; so are the other exceptions of a damaged archive.
    """
    # Opened here, because np.load does not close a damaged file that it opened.
    with open_regular(path) as stream:
        with zipfile.ZipFile(stream) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > os.fstat(stream.fileno()).st_size:
                raise ValueError("it is compressed")
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as arrays:
            splits = [str(split) for split in arrays["splits"]]
            classes = tuple(str(label) for label in arrays["classes"])
            given = {split: Labelled(arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in splits}
    for part in given.values():
        is_sound = part.images.dtype == np.uint8 and part.images.ndim == 4 and part.labels.dtype == np.int64
        if not is_sound or part.labels.shape != part.images.shape[:1]:
            raise ValueError("it has other arrays")
    return classes, given


def _read_tree(path: Path) -> tuple[tuple[str, ...], dict[str, Labelled]]:
    """Decode every image of a folder or archive, in an order that is shuffled but the same in every run.

    The classes are the sorted names of the class folders.
    """
    with open_tree(path, MAX_IMAGE_BYTES) as tree:
        placed = _place(tree)
        decoded = _decode_all(tree, [name for _, _, name in placed])
    classes = tuple(sorted({label for _, label, _ in placed}))
    channels = 3 if any(image.ndim == 3 for image in decoded) else 1
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
        given[split] = Labelled(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), labels)
    return classes, given


def _decode_all(tree: FileTree, names: list[str]) -> list[Bytes]:
    """Decode images of one size; what there is too much of is refused as soon as it shows."""
    decoded: list[Bytes] = []
    num_bytes, num_pixel_bytes = 0, 0
    for name in names:
        content = tree.read(name)
        image = _decode(content, tree.path / name)
        height, width = image.shape[:2]
        if decoded and image.shape[:2] != decoded[0].shape[:2]:
            expected = "×".join(map(str, decoded[0].shape[:2]))
            raise InputError(
                f"Expected every image in {tree.path} to have {expected} pixels (height × width) like {names[0]}, "
                f"but got {height}×{width} in {name}. Bring them to one size."
            )
        if len(names) * height * width > MAX_PIXELS:
            raise InputError(
                f"Expected the images in {tree.path} to have at most {MAX_PIXELS} pixels, but got {len(names)} of "
                f"{height}×{width}. Scale them down, or take a part of them."
            )
        num_bytes, num_pixel_bytes = num_bytes + len(content), num_pixel_bytes + image.size
        if num_pixel_bytes > ratio_limit(num_bytes):
            raise InputError(
                f"Expected the images in {tree.path} to have at most {MAX_RATIO} times their files' bytes decoded, but "
                f"got more at {name}. If you trust them, decompress them by hand: save them as .bmp."
            )
        decoded.append(image)
    return decoded


def _place(tree: FileTree) -> list[tuple[str, str, str]]:
    """Return the split, the class and the name of every image in a tree, sorted by name.

    Args:
        tree: The files.

    Returns:
        One triple for each image. Without a folder `train` or `training`, in small letters or others, that has class
        folders, the split is `train`.

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
    # Archives often hold everything in one folder that is named like the archive.
    outer = {part[0].lower() for part in parts}
    if len(outer) == 1 and not outer & SPLIT_FOLDERS.keys() and min(map(len, parts)) > 2:
        parts = [part[1:] for part in parts]
    by_split = any(SPLIT_FOLDERS.get(part[0].lower()) == "train" and len(part) > 2 for part in parts)
    placed = []
    for name, part in zip(names, parts, strict=True):
        split = SPLIT_FOLDERS.get(part[0].lower()) if by_split else "train"
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
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
                return _pixels(image, path)
    except InputError:
        raise
    # Pillow's decoders raise whatever comes of a damaged file, such as SyntaxError, KeyError or TypeError.
    except Exception as error:
        raise InputError(
            f"Expected {path} to be an image, but got {reason_of(error)}. Replace or remove it."
        ) from error


def _pixels(image: Image.Image, path: Path) -> Bytes:
    """Return the pixels of an image of which only the header was read so far."""
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise InputError(
            f"Expected {path} to have at most {MAX_IMAGE_PIXELS} pixels, but got {image.height}×{image.width}. Scale "
            "it down."
        )
    ImageOps.exif_transpose(image, in_place=True)  # as the camera was held, not as its sensor was read
    if image.mode in {"1", "L", "LA", "La"}:
        return np.asarray(image if image.mode == "L" else image.convert("L"))
    if image.mode in {"RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    if image.mode in {"P", "PA"}:
        pixels = np.asarray(image.convert("RGBA"))[:, :, :3]
        gray = bool((pixels == pixels[:, :, :1]).all())  # a palette says nothing about colour
        return pixels[:, :, 0] if gray else pixels
    raise InputError(
        f"Expected {path} to have 8 bits for each channel, but got Pillow's mode {image.mode!r}. Convert the image."
    )
