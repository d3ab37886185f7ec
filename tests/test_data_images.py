"""Images: the four splits, MNIST's and CIFAR-10's formats, folders and archives, and the augmentation."""

import dataclasses
import gzip
import hashlib
import io
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from forgetless.data import cifar10, image_folders, load_images, mnist, random_crop_and_flip, sources, splits
from forgetless.data.cifar10 import CIFAR10_BATCHES, CIFAR10_CLASSES
from forgetless.data.mnist import read_idx
from forgetless.data.splits import ImageData, ImageSplit, stratified_cut
from forgetless.errors import InputError

SPLITS = ("train", "importance", "validation", "test")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no folder named in the environment."""
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("FORGETLESS_DATA", raising=False)
    return tmp_path / "cache"


def splits_of(data: ImageData) -> dict[str, ImageSplit]:
    return {name: getattr(data, name) for name in SPLITS}


def sizes(data: ImageData) -> list[int]:
    return [len(split.labels) for split in splits_of(data).values()]


def fingerprints(split: ImageSplit) -> list[bytes]:
    return [hashlib.sha256(image.numpy().tobytes()).digest() for image in split.images]


def same(first: ImageData, second: ImageData) -> bool:
    return first.classes == second.classes and all(
        torch.equal(getattr(getattr(first, name), part), getattr(getattr(second, name), part))
        for name in SPLITS
        for part in ("images", "labels")
    )


# Splits


def test_digits() -> None:
    data = load_images("digits")
    assert data.name == "digits"
    assert data.classes == tuple("0123456789")
    assert (data.image_shape, data.num_classes) == ((1, 8, 8), 10)
    assert sizes(data) == [1037, 200, 200, 360]
    for split in splits_of(data).values():
        assert (split.images.dtype, split.labels.dtype) == (torch.float32, torch.int64)
        shares = torch.bincount(split.labels, minlength=10) / len(split.labels)
        assert shares.sub(0.1).abs().max() < 0.01


def test_training_images_have_mean_zero_and_deviation_one() -> None:
    data = load_images("digits")
    assert data.train.images.mean().item() == pytest.approx(0, abs=1e-6)
    assert data.train.images.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    # The others are shifted by the training split's mean, not by their own.
    assert abs(data.test.images.mean().item()) > 1e-4


def test_digits_are_each_in_one_split() -> None:
    from sklearn.datasets import load_digits

    pixels = load_digits().images.reshape(-1, 64).astype(np.float64)
    assert len(np.unique(pixels, axis=0)) == len(pixels)  # so that equal fingerprints are equal examples
    prints = [mark for split in splits_of(load_images("digits")).values() for mark in fingerprints(split)]
    assert len(set(prints)) == len(prints) == 1797


def test_loading_twice_gives_the_same_whatever_the_seeds() -> None:
    first = load_images("digits")
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    assert same(first, load_images("digits"))


def test_the_test_set_of_digits_never_changes() -> None:
    # A change here makes every published number incomparable with the earlier ones.
    labels = load_images("digits").test.labels
    assert hashlib.sha256(labels.numpy().tobytes()).hexdigest()[:16] == "cb89ff76c7ae6b07"


@given(counts=st.lists(st.integers(4, 40), min_size=2, max_size=8), cut=st.sampled_from(["fifth", "tenth"]))
def test_a_cut_is_a_partition_in_the_classes_shares(counts: list[int], cut: str) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    num_cut = round(len(labels) / (5 if cut == "fifth" else 10))
    stay, drawn = stratified_cut(labels, num_cut, "here")
    assert sorted([*stay, *drawn]) == list(range(len(labels)))
    assert list(stay) == sorted(stay)
    assert list(drawn) == sorted(drawn)
    for label, count in enumerate(counts):
        share = int((labels[drawn] == label).sum())
        assert max(1, num_cut * count // len(labels)) <= share <= num_cut * count // len(labels) + 1
        assert count - share >= 3 - (cut == "tenth")  # enough is left for the other splits
    assert len(drawn) == num_cut or any(num_cut * count < len(labels) for count in counts)


def test_cuts_for_different_purposes_differ() -> None:
    labels = np.zeros(100, dtype=np.int64)
    assert list(stratified_cut(labels, 50, "test")[1]) != list(stratified_cut(labels, 50, "validation")[1])


def test_channel_statistics_are_exact() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1500, 2, 3, 4), dtype=np.uint8)
    mean, deviation = splits._channel_statistics(pixels)
    slow = pixels.astype(np.float64).transpose(1, 0, 2, 3).reshape(2, -1)
    assert torch.equal(mean.reshape(-1), torch.from_numpy(slow.mean(1)).float())
    torch.testing.assert_close(deviation.reshape(-1), torch.from_numpy(slow.std(1)).float(), rtol=1e-7, atol=0)


def test_a_constant_channel_becomes_zero(tmp_path: Path) -> None:
    make_folder(tmp_path / "black", lambda *_: np.zeros((2, 2), dtype=np.uint8))
    data = load_images(str(tmp_path / "black"))
    assert all((split.images == 0).all() for split in splits_of(data).values())


# Idx files


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


LABELS = np.arange(5, dtype=np.uint8)
IMAGES = np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4)


@pytest.mark.parametrize("array", [LABELS, IMAGES])
def test_idx_files_are_read_plain_and_compressed(tmp_path: Path, array: np.ndarray) -> None:
    plain, packed = tmp_path / "a", tmp_path / "a.gz"
    plain.write_bytes(idx(array))
    packed.write_bytes(gzip.compress(idx(array)))
    for path in (plain, packed):
        found = read_idx(path)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", r"to begin with the magic number 2049 \(labels\) or 2051 \(images\), but got 0 bytes\."),
        (b"\x00\x00\x08", r"to begin .* but got 3 bytes\."),
        (
            b"\x00\x00\x08\x02" + idx(IMAGES)[4:],
            r"to begin .* but got the magic number 2050\. It is not a file of MNIST's",
        ),
        (b"\x00\x00\x0d\x03" + idx(IMAGES)[4:], r"to begin .* but got the magic number 3331\."),
        (idx(IMAGES)[:15], r"to have a header of 16 bytes, but got 15 bytes in all\. The file is truncated"),
        (idx(IMAGES)[:-1], r"to have 40 bytes for the dimensions \(3, 2, 4\) .* but got 39\. The file is truncated"),
        (idx(LABELS) + b"\x00", r"to have 13 bytes .* but got 14\. The file is followed by trailing bytes"),
        (struct.pack(">4I", 2051, *[2**32 - 1] * 3), r"to have .* but got 16\. The file is truncated"),
        (struct.pack(">4I", 2051, 2**31, 2**31, 4), r"to have 18446744073709551632 bytes .* but got 16\."),
        (struct.pack(">4I", 2051, 2**32 - 1, 2**32 - 1, 0) + b"\x00", r"to have 16 bytes .* but got 17\."),
    ],
)
def test_damaged_idx_files_are_told(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^Expected {path} {complaint}"):
        read_idx(path)


@given(
    array=st.sampled_from([LABELS, IMAGES]),
    packed=st.booleans(),
    keep=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), max_size=6),
)
def test_no_damage_to_an_idx_file_does_more_than_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, packed: bool, keep: float, flips: list
) -> None:
    content = bytearray(gzip.compress(idx(array), mtime=0) if packed else idx(array))
    del content[round(keep * len(content)) :]
    for place, bit in flips:
        if content:
            content[int(place * len(content))] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / ("damaged.gz" if packed else "damaged")
    path.write_bytes(content)
    try:
        found = read_idx(path)
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert found.dtype == np.uint8
        assert found.ndim in {1, 3}


# MNIST


def make_mnist(folder: Path, monkeypatch: pytest.MonkeyPatch, num_train: int = 120, num_test: int = 20) -> None:
    """Write four small files in MNIST's form and make their checksums the expected ones."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for prefix, count in (("train", num_train), ("t10k", num_test)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for name, array in (("images-idx3-ubyte", pixels), ("labels-idx1-ubyte", labels)):
            (folder / f"{prefix}-{name}").write_bytes(idx(array))
    expect_checksums_of(folder, monkeypatch)


def expect_checksums_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        name: dataclasses.replace(source, sha256=hashlib.sha256((folder / name).read_bytes()).hexdigest())
        for name, source in mnist.MNIST_FILES.items()
    }
    monkeypatch.setattr(mnist, "MNIST_FILES", files)


def test_mnist_is_cut_from_the_training_images_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_mnist(tmp_path / "MNIST/raw", monkeypatch)
    data = load_images("mnist", tmp_path)
    assert data.name == "MNIST"
    assert sizes(data) == [100, 10, 10, 20]
    prints = [mark for split in splits_of(data).values() for mark in fingerprints(split)]
    assert len(set(prints)) == 140
    assert data.test.labels.tolist() == [number % 10 for number in range(20)]  # whole and in the file's order


@pytest.mark.parametrize("layout", ["MNIST/raw", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_is_found_in_every_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, packed: bool
) -> None:
    make_mnist(tmp_path / "original", monkeypatch)
    folder = tmp_path / "data" / layout
    folder.mkdir(parents=True)
    for path in (tmp_path / "original").iterdir():
        name, content = (
            (f"{path.name}.gz", gzip.compress(path.read_bytes())) if packed else (path.name, path.read_bytes())
        )
        (folder / name).write_bytes(content)
    monkeypatch.setenv("FORGETLESS_DATA", str(tmp_path / "data"))
    assert same(load_images("mnist"), load_images("mnist", tmp_path / "original"))


def test_a_missing_file_of_mnist_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_mnist(tmp_path / "here", monkeypatch)
    (tmp_path / "here/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match=rf"^Expected the file MNIST/raw/t10k-labels-idx1-ubyte or .* in {tmp_path}"):
        load_images("mnist", tmp_path / "here")


@pytest.mark.parametrize(("name", "num_bytes"), [("train-labels-idx1-ubyte", 128), ("t10k-images-idx3-ubyte", 15_696)])
def test_a_wrong_structure_is_told_before_a_wrong_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, num_bytes: int
) -> None:
    make_mnist(tmp_path / "here", monkeypatch)
    path = tmp_path / "here" / name
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with pytest.raises(InputError, match=rf"^Expected {path} to have {num_bytes} bytes .* but got {num_bytes - 1}\."):
        load_images("mnist", tmp_path / "here")
    path.write_bytes(good[:-1] + bytes([(good[-1] + 1) % 10]))
    with pytest.raises(InputError, match=rf"^Expected {path} to have the SHA-256 checksum .* but got"):
        load_images("mnist", tmp_path / "here")


@pytest.mark.parametrize(
    ("name", "array", "complaint"),
    [
        ("train-labels-idx1-ubyte", np.zeros(119, np.uint8), r"to have the dimensions \(120,\), .* but got \(119,\)\."),
        ("train-labels-idx1-ubyte", np.zeros((60, 28, 28), np.uint8), r"to have the dimensions \(120,\)"),
        ("train-labels-idx1-ubyte", np.full(120, 10, np.uint8), r"to be 0 to 9, but got 10\."),
        ("t10k-images-idx3-ubyte", np.zeros(20, np.uint8), r"to have the dimensions \(N, 28, 28\), but got \(20,\)\."),
        (
            "t10k-images-idx3-ubyte",
            np.zeros((20, 28, 27), np.uint8),
            r"to have the dimensions \(N, 28, 28\), but got \(20, 28, 27\)\.",
        ),
    ],
)
def test_files_of_mnist_that_do_not_fit_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, array: np.ndarray, complaint: str
) -> None:
    make_mnist(tmp_path / "here", monkeypatch)
    (tmp_path / "here" / name).write_bytes(idx(array))
    with pytest.raises(InputError, match=rf"^Expected .*{name} {complaint}"):
        load_images("mnist", tmp_path / "here")


def test_mnist_without_data_or_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        name: dataclasses.replace(source, url=f"https://127.0.0.1:9/{name}.gz")
        for name, source in mnist.MNIST_FILES.items()
    }
    monkeypatch.setattr(mnist, "MNIST_FILES", files)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(InputError, match=r"https://127\.0\.0\.1:9/train-images.*--data-dir or FORGETLESS_DATA"):
        load_images("mnist")


def test_real_mnist(shared_data: Path) -> None:
    if not (shared_data / "MNIST/raw").is_dir():
        pytest.skip("needs MNIST/raw")
    data = load_images("mnist", shared_data)
    assert sizes(data) == [50_000, 5_000, 5_000, 10_000]
    assert data.image_shape == (1, 28, 28)
    assert data.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    held_out = {mark for name in ("importance", "validation") for mark in fingerprints(getattr(data, name))}
    assert len(held_out) == 10_000  # MNIST has no two equal training images
    assert held_out.isdisjoint(fingerprints(data.train))


# CIFAR-10


def make_cifar10(folder: Path, monkeypatch: pytest.MonkeyPatch, num_images: int = 20) -> Path:
    """Write six small files in CIFAR-10's binary form; return their folder."""
    monkeypatch.setattr(cifar10, "CIFAR10_IMAGES_PER_BATCH", num_images)
    rng = np.random.default_rng(0)
    batches = folder / "cifar-10-batches-bin"
    batches.mkdir(parents=True)
    for name in CIFAR10_BATCHES:
        records = rng.integers(0, 256, (num_images, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(num_images) % 10
        (batches / name).write_bytes(records.tobytes())
    return batches


def make_cifar10_archive(batches: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        archive.add(batches, arcname="cifar-10-batches-bin")
    source = dataclasses.replace(
        cifar10.CIFAR10_ARCHIVE, download_hash="md5:" + hashlib.md5(path.read_bytes()).hexdigest()
    )
    monkeypatch.setattr(cifar10, "CIFAR10_ARCHIVE", source)


def test_cifar10_is_read_from_its_binary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = make_cifar10(tmp_path, monkeypatch)
    data = load_images("cifar10", tmp_path)
    assert (data.name, data.classes, data.image_shape) == ("CIFAR-10", CIFAR10_CLASSES, (3, 32, 32))
    assert sizes(data) == [80, 10, 10, 20]
    prints = [mark for split in splits_of(data).values() for mark in fingerprints(split)]
    assert len(set(prints)) == 120
    # The test file whole and in its order; a pixel by the format's definition: label, then red, green, blue planes.
    record = np.frombuffer((batches / "test_batch.bin").read_bytes(), np.uint8)[3073 : 2 * 3073]
    assert data.test.labels[1] == record[0]
    image = data.test.images[1]
    for channel, row, column in ((0, 0, 0), (1, 2, 3), (2, 31, 30)):
        plane = image[channel].double()
        values = torch.from_numpy(record[1:].reshape(3, 1024)[channel].astype(np.float64)).reshape(32, 32)
        slope = (values[0, 1] - values[0, 0]) / (plane[0, 1] - plane[0, 0])
        expected = values[0, 0] + slope * (plane[row, column] - plane[0, 0])
        assert expected.item() == pytest.approx(values[row, column].item(), abs=0.01)


def test_cifar10_is_the_same_from_the_archive(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = make_cifar10(tmp_path / "folder", monkeypatch)
    make_cifar10_archive(batches, tmp_path / "archive/cifar-10-binary.tar.gz", monkeypatch)
    expected = load_images("cifar10", tmp_path / "folder")
    assert same(load_images("cifar10", tmp_path / "archive"), expected)
    shutil.copytree(tmp_path / "archive", cache)  # as a download leaves it
    assert same(load_images("cifar10"), expected)
    assert same(load_images("cifar10", cache), expected)


def test_a_damaged_cached_archive_is_downloaded_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = make_cifar10(tmp_path, monkeypatch)
    make_cifar10_archive(batches, cache / "cifar-10-binary.tar.gz", monkeypatch)
    archive = cache / "cifar-10-binary.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-5])
    source = dataclasses.replace(cifar10.CIFAR10_ARCHIVE, url="https://127.0.0.1:9/cifar-10-binary.tar.gz")
    monkeypatch.setattr(cifar10, "CIFAR10_ARCHIVE", source)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(InputError, match=r"^Expected to download https://127\.0\.0\.1:9/cifar-10-binary"):
        load_images("cifar10")


def test_damaged_files_of_cifar10_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = make_cifar10(tmp_path, monkeypatch)
    path = batches / "data_batch_3.bin"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with pytest.raises(
        InputError, match=rf"^Expected {path} to have 61460 bytes \(20 records of 3073\), but got 61459"
    ):
        load_images("cifar10", tmp_path)
    path.write_bytes(b"\x0a" + good[1:])
    with pytest.raises(InputError, match=rf"^Expected the labels in {path} to be 0 to 9, but got 10\."):
        load_images("cifar10", tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=rf"^Expected {path} to be readable, but got No such file"):
        load_images("cifar10", tmp_path)


def test_damaged_archives_of_cifar10_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = make_cifar10(tmp_path / "folder", monkeypatch)
    path = tmp_path / "archive/cifar-10-binary.tar.gz"
    make_cifar10_archive(batches, path, monkeypatch)
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(InputError, match=rf"^Expected {path} to be a whole \.tar\.gz archive, but got "):
        load_images("cifar10", path.parent)
    path.write_bytes(good + b"\x00")
    with pytest.raises(InputError, match=rf"^Expected {path} to have the md5 checksum [0-9a-f]+, but got "):
        load_images("cifar10", path.parent)
    (batches / "data_batch_2.bin").unlink()
    make_cifar10_archive(batches, path, monkeypatch)
    with pytest.raises(InputError, match=rf"^Expected {path} to have cifar-10-batches-bin/data_batch_2\.bin, but"):
        load_images("cifar10", path.parent)


def test_a_folder_without_cifar10_is_told(tmp_path: Path) -> None:
    pattern = r"^Expected the file cifar-10-batches-bin or cifar-10-binary\.tar\.gz or cifar10-jpeg\.zip or cifar10 in"
    with pytest.raises(InputError, match=pattern):
        load_images("cifar10", tmp_path)


def make_jpeg_copy(original: Path, path: Path) -> None:
    """Make a small archive of ten training and three test images for each class."""
    with zipfile.ZipFile(original) as reader, zipfile.ZipFile(path, "w") as writer:
        for label in CIFAR10_CLASSES:
            for split, count in (("train", 10), ("test", 3)):
                for number in range(count):
                    name = f"{split}/{label}/{number:04}.jpg"
                    writer.writestr(name, reader.read(name))


def test_the_jpeg_copy_is_called_a_copy_and_decoded_once(
    tmp_path: Path, cache: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (shared_data / "cifar10-jpeg.zip").is_file():
        pytest.skip("needs cifar10-jpeg.zip")
    archive = tmp_path / "cifar10-jpeg.zip"
    make_jpeg_copy(shared_data / "cifar10-jpeg.zip", archive)
    first = load_images("cifar10", tmp_path)
    assert (first.name, first.classes, first.image_shape) == ("CIFAR-10 (JPEG copy)", CIFAR10_CLASSES, (3, 32, 32))
    assert sizes(first) == [80, 10, 10, 30]
    prints = [mark for split in splits_of(first).values() for mark in fingerprints(split)]
    assert len(set(prints)) == 130
    (decoded,) = (cache / "decoded").iterdir()
    assert hashlib.sha256(archive.read_bytes()).hexdigest() in decoded.name

    decode = image_folders._decode
    monkeypatch.setattr(image_folders, "_decode", None)  # the second time nothing is decoded
    assert same(load_images("cifar10", tmp_path), first)

    monkeypatch.setattr(image_folders, "_decode", decode)
    good = decoded.read_bytes()
    for damaged in (b"", good[:1000], good[:3000] + b"?" + good[3001:]):
        decoded.write_bytes(damaged)
        assert same(load_images("cifar10", tmp_path), first)
        assert decoded.read_bytes()[:3001] == good[:3001]

    with zipfile.ZipFile(archive) as reader:
        reader.extractall(tmp_path / "folder/cifar10")
    from_folder = load_images("cifar10", tmp_path / "folder")
    assert from_folder.name == "CIFAR-10 (JPEG copy)"
    assert same(from_folder, first)


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path: Path, cache: Path) -> None:
    cache.write_bytes(b"a file where the folder should be")
    archive = zip_folder(make_folder(tmp_path / "pets"))
    assert same(load_images(str(archive)), load_images(str(tmp_path / "pets")))


def test_a_jpeg_copy_must_be_complete(tmp_path: Path) -> None:
    make_folder(tmp_path / "cifar10", splits=("train", "test"))
    with pytest.raises(
        InputError, match=r"^Expected .*cifar10 to have folders train and test with .* but got test and"
    ):
        load_images("cifar10", tmp_path)
    shutil.rmtree(tmp_path / "cifar10")
    make_folder(tmp_path / "cifar10", classes=CIFAR10_CLASSES, count=4)
    with pytest.raises(InputError, match=r"folders train and test .* but got train with airplane"):
        load_images("cifar10", tmp_path)


# Folders and archives


def noise(split: str, label: str, number: int) -> np.ndarray:
    """A gray 4 × 5 image that no other has."""
    seed = int.from_bytes(hashlib.sha256(f"{split}/{label}/{number}".encode()).digest()[:8], "big")
    return np.random.default_rng(seed).integers(0, 256, (4, 5), dtype=np.uint8)


def make_folder(
    root: Path,
    pixels: Callable[[str, str, int], np.ndarray] = noise,
    classes: tuple[str, ...] = ("cat", "dog"),
    splits: tuple[str, ...] = ("",),
    count: int = 10,
) -> Path:
    for split in splits:
        for label in classes:
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(pixels(split, label, number)).save(root / split / label / f"{number:02}.png")
    return root


def zip_folder(root: Path, prefix: str = "") -> Path:
    archive = root.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as writer:
        for path in sorted(root.rglob("*"), reverse=True):  # an archive's own order must not matter
            writer.write(path, f"{prefix}{path.relative_to(root)}")
    return archive


def test_a_folder_by_class_is_cut_into_four(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", count=25)
    data = load_images(str(root))
    assert (data.name, data.classes, data.image_shape) == ("pets", ("cat", "dog"), (1, 4, 5))
    assert sizes(data) == [32, 4, 4, 10]
    for split in splits_of(data).values():
        assert split.labels.sum() * 2 == len(split.labels)  # half of each class in every split
    prints = [mark for split in splits_of(data).values() for mark in fingerprints(split)]
    assert len(set(prints)) == 50


def test_no_part_of_a_split_is_of_one_class(tmp_path: Path) -> None:
    """Errors on some batches, rewards on half of validation: what uses a part of a split must see every class."""
    data = load_images(str(make_folder(tmp_path / "pets", count=100)))
    for split in splits_of(data).values():
        half = len(split.labels) // 2
        assert 0.2 < split.labels[:half].float().mean() < 0.8


def test_a_folder_by_split_keeps_its_splits(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", splits=("train", "test"))
    assert sizes(load_images(str(root))) == [16, 2, 2, 20]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_is_used_whole(tmp_path: Path, name: str) -> None:
    root = make_folder(tmp_path / "pets", splits=("train", "test", name))
    data = load_images(str(root))
    assert sizes(data) == [18, 2, 20, 20]


def test_pixels_and_labels_stay_together(tmp_path: Path) -> None:
    root = make_folder(
        tmp_path / "pets", lambda _, label, number: np.full((2, 3), 100 * (label == "dog") + number, np.uint8)
    )
    for split in splits_of(load_images(str(root))).values():
        brighter = split.images[:, 0, 0, 0] > 0  # brighter than the mean: a dog
        assert torch.equal(brighter.long(), split.labels)


def test_gray_files_give_one_channel_and_a_coloured_one_three(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets")
    Image.fromarray(noise("", "", 0)).convert("1").save(root / "cat/black-and-white.png")
    Image.fromarray(noise("", "", 1)).convert("LA").save(root / "cat/transparent.png")
    Image.fromarray(noise("", "", 2)).convert("P").save(root / "dog/gray-palette.png")
    assert load_images(str(root)).image_shape == (1, 4, 5)
    colours = np.stack([noise("", "", number) for number in range(3)], axis=2)
    Image.fromarray(colours).quantize(8).save(root / "dog/palette.png")
    assert load_images(str(root)).image_shape == (3, 4, 5)
    (root / "dog/palette.png").unlink()
    Image.fromarray(colours).save(root / "dog/colour.JPEG")
    assert load_images(str(root)).image_shape == (3, 4, 5)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1"])
def test_decoding_keeps_the_pixels(tmp_path: Path, mode: str) -> None:
    colours = np.stack([noise("", "", number) for number in range(3)], axis=2)
    image = Image.fromarray(colours).convert(mode)
    stream = io.BytesIO()
    image.save(stream, "png")
    found = image_folders._decode(stream.getvalue(), tmp_path)
    gray = mode in {"L", "LA", "1"}
    np.testing.assert_array_equal(found, np.asarray(image.convert("L")) if gray else colours)


@pytest.mark.parametrize("prefix", ["", "pets/"])
def test_an_archive_is_the_same_as_its_folder(tmp_path: Path, prefix: str) -> None:
    root = make_folder(tmp_path / "pets", splits=("train", "test"))
    archive = zip_folder(root, prefix)
    data = load_images(str(archive))
    assert data.name == "pets"
    assert same(data, load_images(str(root)))


def test_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets")
    expected = load_images(str(root))
    (root / "README.txt").write_text("about")
    (root / "cat/notes.csv").write_text("about")
    (root / "cat/.hidden.png").write_bytes(b"no image")
    (root / "__MACOSX/cat").mkdir(parents=True)
    (root / "__MACOSX/cat/00.png").write_bytes(b"no image")
    assert same(load_images(str(root)), expected)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "vehicles", classes=("bus", "train"))
    assert load_images(str(root)).classes == ("bus", "train")


def test_classes_are_sorted_by_their_names_not_by_their_paths(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", classes=("cat-fish", "cat"))  # "-" comes before "/"
    assert load_images(str(root)).classes == ("cat", "cat-fish")


def test_images_may_lie_deeper_in_their_class(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets")
    expected = load_images(str(root))
    (root / "cat/00").mkdir()
    (root / "cat/00.png").rename(root / "cat/00/a.png")
    assert same(load_images(str(root)), expected)


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets")
    bad = root / "dog/03.png"
    whole = bad.read_bytes()
    stream = io.BytesIO()
    Image.fromarray(noise("", "", 0)).save(stream, "gif")  # a format that is not read, whatever the file is called
    for content in (b"no image", b"", whole[:40], whole[:50], stream.getvalue()):
        bad.write_bytes(content)
        with pytest.raises(InputError, match=rf"^Expected {bad} to be an image, but got .*\. Replace or remove it\."):
            load_images(str(root))
    Image.fromarray(np.zeros((4, 5), dtype=np.uint16)).save(bad)
    with pytest.raises(InputError, match=rf"^Expected {bad} to have 8 bits .* but got Pillow's mode 'I;16'"):
        load_images(str(root))


def test_images_of_different_sizes_are_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets")
    Image.fromarray(np.zeros((5, 4), dtype=np.uint8)).save(root / "dog/03.png")
    pattern = r"to have 4×5 pixels \(height × width\) like cat/00\.png, but got 5×4 in dog/03\.png\."
    with pytest.raises(InputError, match=pattern):
        load_images(str(root))


@pytest.mark.parametrize(
    ("splits", "needed"),
    [
        (("",), "at least 4 images of class 'cat' .* train and test and importance and validation"),
        (("train", "test"), "at least 3 images of class 'cat' in the train images .* train and importance and valid"),
        (("train", "test", "valid"), "at least 2 images of class 'cat' .* train and importance"),
    ],
)
def test_a_class_with_too_few_images_is_told_how_many_it_needs(
    tmp_path: Path, splits: tuple[str, ...], needed: str
) -> None:
    enough = 5 - max(len(splits), 1)
    root = make_folder(tmp_path / "pets", splits=splits, count=enough)
    assert min(sizes(load_images(str(root)))) >= 2  # one of each class
    (root / splits[0] / "cat/00.png").unlink()
    with pytest.raises(InputError, match=rf"^Expected {needed}.*, but got {enough - 1}\. Add images"):
        load_images(str(root))


def test_every_class_must_be_in_the_test_folder(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", splits=("train", "test"))
    shutil.rmtree(root / "test/dog")
    with pytest.raises(InputError, match=r"^Expected at least 1 images of class 'dog' in the test .* but got 0\."):
        load_images(str(root))
    make_folder(root, classes=("dog", "emu"), splits=("test",))
    with pytest.raises(InputError, match=r"of class 'emu' in the train images of pets .* but got 0\."):
        load_images(str(root))


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets", classes=("cat",))
    with pytest.raises(InputError, match=r"^Expected pets to have at least 2 classes, but got 1\."):
        load_images(str(root))


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("about")
    with pytest.raises(InputError, match=rf"^Expected {tmp_path} to have images .* but got none among 1 files\."):
        load_images(str(tmp_path))


def test_an_image_outside_the_class_folders_is_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets")
    shutil.copy(root / "cat/00.png", root / "preview.png")
    with pytest.raises(InputError, match=r"pets to be in a class folder, but got preview\.png\. Move it"):
        load_images(str(root))
    root = make_folder(tmp_path / "split", splits=("train", "unlabelled"))
    with pytest.raises(InputError, match=r"one of the folders train, test, val, .* but got unlabelled/cat/00\.png\."):
        load_images(str(root))
    shutil.rmtree(root / "unlabelled")
    shutil.copy(root / "train/cat/00.png", root / "train/preview.png")
    with pytest.raises(InputError, match=r"but got train/preview\.png\. Move it"):
        load_images(str(root))


def test_unknown_names_are_told_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"folder or \.zip of them\) to be one of .* but got 'cifar'\. Did you mean 'cif"
    ):
        load_images("cifar")
    (tmp_path / "a.txt").write_text("no archive")
    with pytest.raises(InputError, match=r"a\.txt to be a folder or a \.zip archive, but got .*\. Check the file"):
        load_images(str(tmp_path / "a.txt"))


# Augmentation


def slow_crop_and_flip(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """One image after another; the draws come in the order of the fast version."""
    batch, _, height, width = images.shape
    down = torch.randint(2 * padding + 1, (batch, 1), generator=generator)
    mirror = torch.randint(2, (batch, 1), generator=generator)
    right = torch.randint(2 * padding + 1, (batch, 1), generator=generator)
    results = []
    for number, image in enumerate(images):
        top, left = int(down[number]), int(right[number])
        window = F.pad(image, (padding,) * 4)[:, top : top + height, left : left + width]
        results.append(window.flip(-1) if mirror[number] else window)
    return torch.stack(results)


@pytest.mark.parametrize("shape", [(64, 3, 8, 8), (16, 1, 5, 9), (1, 2, 1, 1)])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_crops_and_flips_agree_with_a_loop(shape: tuple[int, ...], padding: int, dtype: torch.dtype) -> None:
    images = torch.randint(1, 200, shape).to(dtype)
    before = images.clone()
    fast = random_crop_and_flip(images, padding, torch.Generator().manual_seed(3))
    assert torch.equal(fast, slow_crop_and_flip(images, padding, torch.Generator().manual_seed(3)))
    assert fast.dtype == dtype
    assert torch.equal(images, before)


def test_every_place_and_both_directions_are_equally_likely() -> None:
    image = torch.zeros(1, 1, 3, 3)
    image[0, 0, 1, 0] = 1  # left of the middle
    num_images = 18_000
    moved = random_crop_and_flip(image.expand(num_images, -1, -1, -1), 1, torch.Generator().manual_seed(0))
    rows, columns = moved.sum(dim=(0, 1, 3)), moved.sum(dim=(0, 1, 2))
    # Rows 0, 1, 2 by shifts of -1, 0, 1. Columns: 1/3 falls off; 1/3 stays at 0 or goes to 2; 1/3 is in the middle.
    torch.testing.assert_close(rows / moved.sum(), torch.full((3,), 1 / 3), atol=0.02, rtol=0)
    torch.testing.assert_close(columns / num_images, torch.tensor([1 / 6, 1 / 3, 1 / 6]), atol=0.015, rtol=0)


def test_an_empty_batch_stays_empty() -> None:
    assert random_crop_and_flip(torch.zeros(0, 3, 4, 4), 2, torch.Generator()).shape == (0, 3, 4, 4)


def test_wrong_batches_are_told() -> None:
    with pytest.raises(InputError, match=r"^Expected images to have shape \(B, C, H, W\), but got \(3, 4, 4\)\."):
        random_crop_and_flip(torch.zeros(3, 4, 4), 1, torch.Generator())
    with pytest.raises(InputError, match=r"^Expected padding to be at least 0, but got -1\."):
        random_crop_and_flip(torch.zeros(1, 3, 4, 4), -1, torch.Generator())


@pytest.mark.parametrize("names", [("training", "testing"), ("Train", "Test"), ("TRAIN", "test")])
def test_splits_by_other_names_are_no_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    root = make_folder(tmp_path / "right", splits=("train", "test"), count=20)
    for name, right in zip(names, ("train", "test"), strict=True):
        shutil.copytree(root / right, tmp_path / "other" / name)
    data = load_images(str(tmp_path / "other"))
    assert data.classes == ("cat", "dog")
    assert same(data, load_images(str(root)))


def test_photographs_are_turned_as_the_camera_was_held(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned to the right by a quarter
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(12):
            Image.fromarray(pixels).save(tmp_path / label / f"{i}.png", exif=exif)
    data = load_images(str(tmp_path))
    assert data.train.images.shape[2:] == (4, 3)
    image = image_folders._decode((tmp_path / "a/0.png").read_bytes(), tmp_path)
    assert image.tolist() == np.rot90(pixels, -1).tolist()
