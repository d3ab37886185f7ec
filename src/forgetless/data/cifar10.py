"""CIFAR-10 in each of the forms that it comes in."""

import dataclasses
import gzip
import struct
import tarfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from forgetless.data import sources
from forgetless.data.files import (
    LimitedReader,
    TooLargeError,
    file_hash,
    kind_of,
    open_regular,
    read_bytes,
    reason_of,
)
from forgetless.data.image_folders import load_tree
from forgetless.data.sources import Source, fetch
from forgetless.data.splits import ImageData, Labelled, assemble
from forgetless.errors import InputError

CIFAR10_ARCHIVE = Source(
    paths=("cifar-10-binary.tar.gz",),
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    download_path="cifar-10-binary.tar.gz",
    download_hash="sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    download_bytes=170_052_171,
)
CIFAR10_FOLDER = "cifar-10-batches-bin"
CIFAR10_BATCHES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_IMAGES_PER_BATCH = 10_000
_CIFAR10_RECORD = 1 + 3 * 32 * 32  # a label, then the red, the green and the blue plane, in bytes
_OTHER_BYTES = 2**20  # headers, padding, a readme and the names of the classes take some 20 KiB of the archive
_MAX_ENTRIES = 1000  # there are nine

TAR_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    MemoryError,  # a size that cannot be
    IndexError,
    struct.error,
    tarfile.TarError,
    zlib.error,
)
"""What tarfile and gzip raise on damage."""


def load_cifar10(data_dir: str | Path | None) -> ImageData:
    """Look for the binary folder, the binary archive, the JPEG archive and the JPEG folder, then download.

    Args:
        data_dir: The folder that has one of them, or None; see `forgetless.data.sources.search_folders`.

    Returns:
        The four splits; test is the official one.

    Raises:
        InputError: If there is none, or it is damaged or not the published one.
    """
    for folder in sources.search_folders(data_dir):
        if kind_of(folder / CIFAR10_FOLDER) == "folder":
            return _assemble_cifar10(_read_cifar10_folder(folder / CIFAR10_FOLDER))
        archive = folder / CIFAR10_ARCHIVE.paths[0]
        if kind_of(archive) == "file" and folder != sources.cache_folder():  # `fetch` renews a damaged cached archive
            return _assemble_cifar10(_read_cifar10_archive(archive))
        for copy in (folder / "cifar10-jpeg.zip", folder / "cifar10"):
            if kind_of(copy) is not None:
                return load_tree(copy, "CIFAR-10 (JPEG copy)", expected_classes=CIFAR10_CLASSES)
    any_form = (CIFAR10_FOLDER, *CIFAR10_ARCHIVE.paths, "cifar10-jpeg.zip", "cifar10")
    path = fetch(dataclasses.replace(CIFAR10_ARCHIVE, paths=any_form), data_dir)
    return _assemble_cifar10(_read_cifar10_archive(path))


def _assemble_cifar10(given: dict[str, Labelled]) -> ImageData:
    num_held_out = len(given["train"].labels) // 10  # 5,000 of 50,000
    return assemble("CIFAR-10", CIFAR10_CLASSES, given, num_importance=num_held_out, num_validation=num_held_out)


def _read_cifar10_folder(folder: Path) -> dict[str, Labelled]:
    paths = {name: folder / name for name in CIFAR10_BATCHES}
    return _join_cifar10({name: _parse_cifar10(read_bytes(path, _batch_bytes()), path) for name, path in paths.items()})


def _read_cifar10_archive(path: Path) -> dict[str, Labelled]:
    """Read the six files straight from the archive; a bad structure is reported before a wrong checksum."""
    batches: dict[str, Labelled] = {}
    with open_regular(path) as stream:
        content = LimitedReader(gzip.GzipFile(fileobj=stream), len(CIFAR10_BATCHES) * _batch_bytes() + _OTHER_BYTES)
        try:
            # As a stream it is read once, in its own order, and a bad header cannot send the reader back.
            with tarfile.open(fileobj=content, mode="r|") as archive:  # type: ignore[call-overload]
                _read_batches(archive, path, batches)
        except TooLargeError:
            raise InputError(
                f"Expected {path} to have the six files of CIFAR-10 and no more, but got more. Replace it."
            ) from None
        except InputError:
            raise
        except TAR_ERRORS as error:
            raise InputError(
                f"Expected {path} to be a whole .tar.gz archive, but got {reason_of(error)}. Replace it."
            ) from error
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


def _read_batches(archive: tarfile.TarFile, path: Path, batches: dict[str, Labelled]) -> None:
    for number, entry in enumerate(archive):
        if number == _MAX_ENTRIES:
            raise TooLargeError
        member = PurePosixPath(entry.name)
        if member.name not in CIFAR10_BATCHES or not entry.isreg():
            continue
        _check_size(entry.size, path / member)  # what is stored with holes could be of any size
        if (stream := archive.extractfile(entry)) is not None:
            batches[member.name] = _parse_cifar10(stream.read(), path / member)


def _batch_bytes() -> int:
    return CIFAR10_IMAGES_PER_BATCH * _CIFAR10_RECORD


def _join_cifar10(batches: dict[str, Labelled]) -> dict[str, Labelled]:
    *train, test = (batches[name] for name in CIFAR10_BATCHES)
    images, labels = [part.images for part in train], [part.labels for part in train]
    return {"train": Labelled(np.concatenate(images), np.concatenate(labels)), "test": test}


def _check_size(num_bytes: int, path: Path) -> None:
    if num_bytes != _batch_bytes():
        raise InputError(
            f"Expected {path} to have {_batch_bytes()} bytes ({CIFAR10_IMAGES_PER_BATCH} records of "
            f"{_CIFAR10_RECORD}), but got {num_bytes}. Replace the file."
        )


def _parse_cifar10(content: bytes, path: Path) -> Labelled:
    """Read records of one label byte and 3 × 32 × 32 pixel bytes."""
    _check_size(len(content), path)
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, _CIFAR10_RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= len(CIFAR10_CLASSES):
        raise InputError(f"Expected the labels in {path} to be 0 to 9, but got {labels.max()}. Replace the file.")
    return Labelled(records[:, 1:].reshape(-1, 3, 32, 32), labels)
