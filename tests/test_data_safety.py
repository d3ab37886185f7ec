"""What is read runs no code, reaches no network, and ends in one printable sentence whatever is wrong with it."""

import ast
import gzip
import io
import os
import random
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from forgetless.cli import main
from forgetless.cli.folders import _short_name
from forgetless.data import cifar10, files, image_folders, load_images, load_text, mnist, sources, text
from forgetless.data.image_folders import IMAGE_FORMATS, load_tree
from forgetless.errors import InputError

SOURCE = Path(image_folders.__file__).parents[1]

NETWORK = {"aiohttp", "asyncio", "ftplib", "http", "httpx", "imaplib", "pooch", "requests", "smtplib", "socket"} | {
    "socketserver", "ssl", "telnetlib", "urllib", "urllib3", "websockets", "xmlrpc"
}  # fmt: skip
CODE = {"cloudpickle", "code", "ctypes", "dill", "imp", "importlib", "joblib", "marshal", "pickle", "ray", "runpy"} | {
    "shelve", "subprocess", "yaml"
}  # fmt: skip
CALLS = {"__import__", "compile", "eval", "exec"}
ATTRIBUTES = {"execv", "execve", "execvp", "extractall", "hub", "import_module", "popen", "read_pickle", "spawnv"} | {
    "startfile", "system", "unpack_archive", "unsafe_load"
}  # fmt: skip

ALLOWED = {
    ("__init__.py", "importlib"): "the version of this package",
    ("data/sources.py", "pooch"): "downloads, over https, what has a checksum",
    ("data/sources.py", "urllib"): "takes addresses apart",
    ("cli/__init__.py", "importlib"): "imports the module of the command that is called",
    ("cli/__init__.py", "import_module"): "the same",
    ("lazy.py", "importlib"): "imports this package's own modules when their names are used",
    ("lazy.py", "import_module"): "the same",
    ("plugins.py", "importlib"): "files that the user names with --plugin, and installed packages that declare it",
    ("registry.py", "importlib"): "imports the modules of this package that register something",
    ("registry.py", "import_module"): "the same",
    ("workers.py", "pickle"): "a job on its way to a process that this one started",
    ("cluster.py", "importlib"): "whether ray is installed",
    ("cluster.py", "ray"): "the cluster that the user names with --cluster",
    ("cluster.py", "socket"): "asks whether that cluster answers",
    ("interruption.py", "socket"): "a pair of this process's own, to hear signals",
    ("runs/environment.py", "importlib"): "versions of installed packages",
    ("runs/environment.py", "subprocess"): "git, for the revision; a list of words, and no shell",
    ("runs/lock.py", "socket"): "the name of this computer",
    ("runs/states.py", "pickle"): "the name of the exception that torch.load raises",
    ("runs/names.py", "importlib"): "the version of this package",
    ("tensorboard.py", "importlib"): "whether tensorboard is installed",
    ("experiments/fine_tune/hugging_face.py", "importlib"): "whether transformers is installed",
    ("protection/_adapters.py", "importlib"): "whether peft is installed",
    ("spaces/graph/table.py", "importlib"): "where nas-bench-graph is installed; nothing of it is run",
    ("spaces/graph/table.py", "pickle"): "an unpickler that makes numbers and nothing else",
}


def findings(tree: ast.AST) -> Iterator[str]:
    """Give what could run code from data or reach the network, by its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from {alias.name.partition(".")[0] for alias in node.names} & (NETWORK | CODE)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from {str(node.module).partition(".")[0]} & (NETWORK | CODE)
            yield from {alias.name for alias in node.names} & ATTRIBUTES
        elif isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES and ast.unparse(node) != "platform.system":
            yield node.attr
        elif isinstance(node, ast.Call):
            yield from found_in_call(node)


def found_in_call(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if called in CALLS or called.startswith("builtins."):
        yield called
    if called in {"torch.load", "load"} and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if called in {"np.load", "numpy.load"} and given.get("allow_pickle") != "False":
        yield "np.load without allow_pickle=False"
    if given.get("allow_pickle") == "True" or given.get("shell", "False") != "False":
        yield "allow_pickle or shell"


PLACES = {
    path.relative_to(SOURCE).as_posix(): set(findings(ast.parse(path.read_text(encoding="utf-8"))))
    for path in sorted(SOURCE.rglob("*.py"))
}


def test_no_code_runs_from_data_and_only_sources_reaches_the_network() -> None:
    assert len(PLACES) > 50
    found = {(path, name) for path, names in PLACES.items() for name in names}
    assert found == set(ALLOWED), "what is not in ALLOWED, or is there and is gone"


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "import pickle",
        "from pickle import loads",
        "import marshal, os",
        "from shelve import open",
        "yaml.unsafe_load(text)",
        "import yaml",
        "eval(text)",
        "exec(text)",
        "compile(text, '', 'exec')",
        "__import__(name)",
        "builtins.eval(text)",
        "os.system(text)",
        "from os import system",
        "os.popen(text)",
        "subprocess.run(text, shell=True)",
        "subprocess.run(text, shell=wanted)",
        "archive.extractall(folder)",
        "torch.hub.load(name)",
        "def f():\n    import requests",
        "import urllib.request",
        "from http.client import HTTPSConnection",
        "from importlib import import_module",
    ],
)
def test_every_way_is_seen(code: str) -> None:
    assert list(findings(ast.parse(code)))


def test_sound_code_is_not_refused() -> None:
    code = "model.eval(); re.compile(text); torch.load(path, weights_only=True); np.load(path, allow_pickle=False)"
    assert not list(findings(ast.parse(code)))


def test_no_decoder_of_images_runs_a_program() -> None:
    assert not {"EPS", "PDF", "WMF", "GIF", "FPX", "MIC"} & set(IMAGE_FORMATS)


def test_every_download_is_named_encrypted_checked_and_limited() -> None:
    found = [*mnist.MNIST_FILES.values(), cifar10.CIFAR10_ARCHIVE, *text.PTB_FILES.values()]
    for source in found:
        assert str(source.url).startswith("https://")
        assert str(source.download_hash).partition(":")[0] in {"md5", "sha256"}
        assert source.download_path in source.paths
        assert not Path(str(source.download_path)).is_absolute()
        assert ".." not in Path(str(source.download_path)).parts
        assert source.download_bytes
        assert source.sha256 or str(source.download_hash).startswith("sha256:")  # an MD5 can be forged
    for source in (*text.WIKITEXT2_FILES.values(), *text.FOLDER_FILES.values()):
        assert source.url is None


# Whatever is wrong, one sentence


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no folder named in the environment."""
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("FORGETLESS_DATA", raising=False)
    return tmp_path / "cache"


LOADERS = [load_images, load_text]


def refused(load: Callable[[str], object], name: str, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        load(name)
    assert str(caught.value).isprintable()
    str(caught.value).encode()


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a\0b", r"a\\x00b to be readable, but got embedded null"),
        ("a\ud800", r"a\\ud800 to be readable, but got .*surrogates"),
        ("a" * 300, "File name too long"),
        ("a/" * 3000, "File name too long"),
        ("~nobody-of-this-name/a", "to begin with the folder of a user"),
        ("no/such\n\x1b[2J", r"there is no no/such\\n\\x1b\[2J"),
        ("itself", "Too many levels of symbolic links"),
        ("nothing", "a link to nothing"),
        ("pipe", "a named pipe"),
        ("device", "a device"),
    ],
)
def test_bad_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[[str], object], name: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    for link, target in (("itself", "itself"), ("nothing", "no"), ("device", "/dev/zero")):
        Path(link).symlink_to(target)
    refused(load, name, reason)


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("folder", ["a\0b", "a" * 300, "~nobody-of-this-name", "pipe", "nothing", "file"])
def test_bad_data_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[[str, str], object], folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("nothing").symlink_to("no")
    Path("file").touch()
    refused(lambda name: load(name, folder), "mnist" if load is load_images else "ptb", "^Expected ")
    if "\0" not in folder:
        monkeypatch.setenv("FORGETLESS_DATA", folder)
        monkeypatch.setattr(sources, "SCHEMES", ())  # nothing is downloaded here
        refused(load, "mnist" if load is load_images else "ptb", "^Expected ")


def test_what_is_no_file_in_the_place_of_one(tmp_path: Path, cache: Path) -> None:
    for name in ("train.txt", "valid.txt", "test.txt"):
        (tmp_path / name).write_text("some words\nand more\n")
    load_text(str(tmp_path))
    (tmp_path / "test.txt").unlink()
    os.mkfifo(tmp_path / "test.txt")
    refused(load_text, str(tmp_path), r"test\.txt to be a regular file, but got a named pipe")
    (tmp_path / "test.txt").unlink()
    (tmp_path / "test.txt").mkdir()
    refused(load_text, str(tmp_path), r"^Expected the file test\.txt in .*, but got the folder .*test\.txt\. Put it")
    cache.mkdir()
    os.mkfifo(cache / "cifar-10-binary.tar.gz")
    refused(load_images, "cifar10", r"cifar-10-binary\.tar\.gz to be a regular file, but got a named pipe")


def test_a_pipe_in_the_place_of_a_decoded_copy_only_costs_time(tmp_path: Path, cache: Path) -> None:
    archive = tmp_path / "pets.zip"
    with zipfile.ZipFile(archive, "w") as writer:
        for name in (f"{label}/{number}.png" for label in "ab" for number in range(4)):
            writer.writestr(name, png(np.full((2, 2), random.Random(name).randrange(256), np.uint8)))
    (cache / "decoded").mkdir(parents=True)
    hashed = files.file_hash(archive, "sha256")
    os.mkfifo(cache / "decoded" / f"{hashed}-v{image_folders._CACHE_VERSION}.npz")
    assert load_images(str(archive)).num_classes == 2
    assert load_images(str(archive)).num_classes == 2  # from the copy


def test_names_of_data_are_printable(tmp_path: Path) -> None:
    root = tmp_path / "pets\x1b[31m\udcff"
    for label in ("a\n", "b\udcff"):
        (root / label).mkdir(parents=True)
        for number in range(4):
            (root / label / f"{number}.png").write_bytes(png(np.full((2, 2), number, np.uint8)))
    data = load_images(str(root))
    assert data.name == "pets\\x1b[31m\\xff"
    assert data.classes == ("a\\n", "b\\xff")


@pytest.mark.parametrize("name", ["digits", "my data", "é" * 50])
def test_sound_names_of_runs_are_kept(name: str) -> None:
    assert _short_name(f"somewhere/{name}.zip") == name


def test_other_names_of_runs_are_cleaned_and_shortened() -> None:
    assert _short_name("somewhere/a\x1b[2J\n\udcff") == "a_[2J__"
    assert _short_name("x" * 250) == "x" * 100
    assert _short_name("é" * 125 + "/") == "é" * 50


def test_the_command_line_prints_one_line_and_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = Path("a\x1b[2J\n")
    bad.mkdir()
    (bad / "link").symlink_to(".")
    assert main(["two-model", "--data", str(bad)]) == 2
    printed = capfd.readouterr().err
    assert printed.startswith("forgetless: Expected each folder in ")
    assert printed.count("\n") == 1
    assert printed.strip().isprintable()
    assert not Path("runs").exists()


# Bombs and damage


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of which there is hardly more than the size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("side", "told"),
    [
        (4097, r"to have at most 16777216 pixels, but got 4097×4097\. Scale it down\."),
        (10_000, "to be an image, but got .* could be decompression bomb"),  # Pillow warns
        (20_000, "to be an image, but got .* could be decompression bomb"),
        (2**31 - 1, "to be an image, but got "),
    ],
)
def test_one_huge_image_is_refused_by_its_header(tmp_path: Path, side: int, told: str) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(4):
            (tmp_path / label / f"{number}.png").write_bytes(png_header(side, side))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # also where the user does not see Pillow's own warning
        refused(load_images, str(tmp_path), rf"^Expected {tmp_path}/a/0\.png {told}")


@pytest.mark.parametrize(
    "changes",
    [
        {"train_labels": np.zeros(3, np.int64)},
        {"train_labels": np.zeros(4, np.int32)},
        {"train_images": np.zeros((4, 1, 2, 2), np.float32)},
        {"train_images": np.zeros((4, 4), np.uint8)},
        {"splits": np.array(["test"])},
        {"classes": np.array([print], dtype=object)},
    ],
)
def test_a_decoded_copy_that_is_another_is_not_used(tmp_path: Path, changes: dict[str, np.ndarray]) -> None:
    arrays = {
        "splits": np.array(["train"]),
        "classes": np.array(["a", "b"]),
        "train_images": np.zeros((4, 1, 2, 2), np.uint8),
        "train_labels": np.zeros(4, np.int64),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    assert image_folders._load_decoded(tmp_path / "a.npz")[0] == ("a", "b")
    np.savez(tmp_path / "a.npz", allow_pickle=True, **arrays | changes)
    with pytest.raises((ValueError, KeyError), match=r"other arrays|test_images|allow_pickle=False"):
        image_folders._load_decoded(tmp_path / "a.npz")


def test_a_bomb_in_the_place_of_a_decoded_copy_is_not_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", splits=np.zeros(1_000_000))
    with pytest.raises(ValueError, match="it is compressed"):
        image_folders._load_decoded(tmp_path / "a.npz")


def make_images(root: Path, pixels: np.ndarray, count: int = 8) -> Path:
    content = png(pixels)
    for label in "ab":
        (root / label).mkdir(parents=True)
        for number in range(count):
            (root / label / f"{number}.png").write_bytes(content)
    return root


def test_many_images_are_refused_at_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_images(tmp_path / "pets", np.zeros((10, 10), np.uint8))
    monkeypatch.setattr(image_folders, "MAX_PIXELS", 1600)
    load_tree(tmp_path / "pets", "pets")
    monkeypatch.setattr(image_folders, "MAX_PIXELS", 1599)
    refused(load_images, str(tmp_path / "pets"), r"to have at most 1599 pixels, but got 16 of 10×10\. Scale them down")


def test_images_have_a_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_images(tmp_path / "pets", np.zeros((1000, 1000), np.uint8))
    load_tree(tmp_path / "pets", "pets")
    monkeypatch.setattr(files, "RATIO_FREE_BYTES", 2**21)
    refused(load_images, str(tmp_path / "pets"), r"at most 100 times their files' bytes decoded, .* as \.bmp\.$")


def test_an_image_file_has_a_limit(tmp_path: Path) -> None:
    root = make_images(tmp_path / "pets", np.zeros((2, 2), np.uint8))
    os.truncate(root / "a/0.png", 2**28 + 1)
    refused(load_images, str(root), rf"^Expected {root}/a/0\.png to have a content of at most 256 MiB, but got more")


@pytest.mark.parametrize("name", ["t10k-labels-idx1-ubyte.gz", "t10k-labels-idx1-ubyte"])
def test_a_bomb_in_the_place_of_a_file_of_mnist(tmp_path: Path, name: str) -> None:
    for source in mnist.MNIST_FILES:
        (tmp_path / source).write_bytes(b"")
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    (tmp_path / name).write_bytes(gzip.compress(bytes(20_000)) if name.endswith(".gz") else bytes(20_000))
    source = mnist.MNIST_FILES["t10k-labels-idx1-ubyte"]
    with pytest.raises(InputError, match=rf"{name} to have a content of 10008 bytes, but got more\."):
        files.read_bytes(sources.fetch(source, tmp_path), source.num_bytes)


def tar(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        for entry, content in entries:
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def small_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "CIFAR10_IMAGES_PER_BATCH", 2)


@pytest.mark.usefixtures("small_cifar10")
@pytest.mark.parametrize("kind", ["one large file", "a large header", "many files", "many headers"])
def test_a_bomb_in_the_place_of_the_archive_of_cifar10(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "cifar-10-binary.tar.gz"
    if kind == "one large file":
        tar(path, [(tarfile.TarInfo("readme"), bytes(5_000_000))])
    elif kind == "a large header":
        entry = tarfile.TarInfo("readme")
        entry.pax_headers = {"comment": "x" * 5_000_000}
        tar(path, [(entry, b"")])
    else:
        number = 1001 if kind == "many files" else 3000
        tar(path, [(tarfile.TarInfo(f"{index}"), b"") for index in range(number)])
    refused(
        lambda name: load_images(name, tmp_path),
        "cifar10",
        rf"^Expected {path} to have the six files of CIFAR-10 and no more, but got more\. Replace it\.$",
    )


@pytest.mark.usefixtures("small_cifar10")
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_what_is_no_file_in_the_archive_of_cifar10_is_not_read(tmp_path: Path, kind: bytes) -> None:
    entry = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    entry.type, entry.linkname = kind, "/etc/passwd"
    tar(tmp_path / "cifar-10-binary.tar.gz", [(entry, b"")])
    refused(lambda name: load_images(name, tmp_path), "cifar10", r"data_batch_1\.bin, but got no such file\.")


@pytest.mark.usefixtures("small_cifar10")
def test_a_batch_of_another_size_in_the_archive_of_cifar10_is_told_once(tmp_path: Path) -> None:
    path = tar(tmp_path / "cifar-10-binary.tar.gz", [(tarfile.TarInfo("data_batch_1.bin"), b"short")])
    pattern = rf"^Expected {path}/data_batch_1\.bin to have 6146 bytes .*, but got 5\. Replace the file\.$"
    refused(lambda name: load_images(name, tmp_path), "cifar10", pattern)


@pytest.mark.usefixtures("small_cifar10")
def test_no_damage_to_a_tar_archive_does_more_than_an_input_error(tmp_path: Path) -> None:
    dice = random.Random(0)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name in cifar10.CIFAR10_BATCHES:
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size, entry.mtime = 2 * 3073, 1.5  # a time that needs a header of its own
            archive.addfile(entry, io.BytesIO(bytes(entry.size)))
    whole = stream.getvalue()
    headers = [place for place in range(0, len(whole), 512) if whole[place : place + 512].strip(b"\0")]
    path = tmp_path / "cifar-10-binary.tar.gz"
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(dice.choice((1, 2, 4))):
            header = dice.choice(headers)
            content[header + dice.randrange(512)] = dice.choice((0, 255, dice.randrange(256), *b"7SxLK12", 0x80))
            content[header + 148 : header + 156] = b" " * 8
            content[header + 148 : header + 156] = b"%06o\0 " % sum(content[header : header + 512])
        path.write_bytes(gzip.compress(bytes(content), 1))
        refused(lambda name: load_images(name, tmp_path), "cifar10", str(path))


def some_images() -> list[bytes]:
    dice = np.random.default_rng(0)
    contents = []
    for kind, options in (
        *((kind, {}) for kind in IMAGE_FORMATS),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("JPEG", {"progressive": True}),
    ):
        for mode in ("RGB", "L"):
            stream = io.BytesIO()
            Image.fromarray(dice.integers(0, 256, (8, 9, 3), np.uint8)).convert(mode).save(stream, kind, **options)
            contents.append(stream.getvalue())
    return contents


def test_no_damage_to_an_image_does_more_than_an_input_error(tmp_path: Path) -> None:
    dice, whole, path = random.Random(0), some_images(), tmp_path / "a.png"
    for _ in range(1500):
        content = bytearray(dice.choice(whole))
        for _ in range(dice.choice((1, 1, 2, 4, 16))):
            content[dice.randrange(dice.choice((len(content), min(len(content), 80))))] = dice.choice(
                (0, 255, 127, 128, dice.randrange(256))
            )
        del content[dice.choice((len(content), dice.randrange(len(content)))) :]
        try:
            image_folders._decode(bytes(content), path)
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017
            assert str(error).isprintable()  # noqa: PT017
