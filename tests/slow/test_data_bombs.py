"""Small files of enormous contents: each is refused in a sentence, in seconds, in little memory.

Each is loaded by a process of its own, which is measured: the seconds of the call, and how much the process grew by it.
"""

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reliability import report

NUM_BYTES = 2_700_000_000
MAX_SECONDS = 30.0  # of a machine that is busy; they take 0 to 5
MAX_GROWTH_BYTES = 600 * 2**20

LOAD = """
import json, sys, time
from pathlib import Path
from forgetless.data import load_images, load_text
from forgetless.errors import InputError

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

kind, name, folder = sys.argv[1:]
before, begin, said = peak(), time.monotonic(), None
try:
    (load_text if kind == "text" else load_images)(name, folder or None)
except InputError as error:
    said = str(error)
print(json.dumps({"said": said, "seconds": time.monotonic() - begin, "growth": peak() - before}))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures with Linux's /proc")


def zeros(num_bytes=NUM_BYTES, piece=bytes(2**20)):
    while num_bytes > 0:
        yield piece[:num_bytes]
        num_bytes -= len(piece)


def compressed(num_bytes=NUM_BYTES, wbits=31):
    packer = zlib.compressobj(9, wbits=wbits)
    return b"".join([*map(packer.compress, zeros(num_bytes)), packer.flush()])


def mnist_gz(folder):
    """The 2.6 MB of the report: labels that are 2.7 GB."""
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, 0, 28, 28))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(compressed())
    return "images", "mnist", folder


def cifar_tar(folder):
    """One file of 2.7 GB before the six that there should be."""
    entry = tarfile.TarInfo("cifar-10-batches-bin/readme.html")
    entry.size = NUM_BYTES
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(entry.tobuf()), *map(packer.compress, zeros()), packer.flush()]
    (folder / "cifar-10-binary.tar.gz").write_bytes(b"".join(parts))
    return "images", "cifar10", folder


def cifar_tar_header(folder):
    """A header of 2.7 GB, which tarfile reads whole."""
    entry = tarfile.TarInfo("x")
    entry.size, entry.type = NUM_BYTES, tarfile.XHDTYPE
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(entry.tobuf(tarfile.USTAR_FORMAT)), *map(packer.compress, zeros()), packer.flush()]
    (folder / "cifar-10-binary.tar.gz").write_bytes(b"".join(parts))
    return "images", "cifar10", folder


def cifar_tar_holes(folder):
    """A batch of 2.7 GB that is nothing but a hole."""
    entry = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    entry.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (NUM_BYTES, 0)  # one piece of no bytes, at the end
    header[483:495] = b"%011o\0" % NUM_BYTES  # the real size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (folder / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(bytes(header) + bytes(1024)))
    return "images", "cifar10", folder


def image(pixels=((0, 1), (2, 3)), kind="png"):
    stream = io.BytesIO()
    Image.fromarray(np.array(pixels, np.uint8)).save(stream, kind)
    return stream.getvalue()


def zip_of(path, name, pieces, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression, compresslevel=9) as writer:
        for label in "ab":
            for number in range(4):
                writer.writestr(f"{label}/{number}.png", image())
        with writer.open(name, "w", force_zip64=False) as stream:
            for piece in pieces:
                stream.write(piece)
    return "images", path, ""


def zip_honest(folder):
    return zip_of(folder / "a.zip", "a/00.png", zeros(2_000_000_000))


def zip_lies(folder, compression=zipfile.ZIP_DEFLATED, num_bytes=2_000_000_000):
    """The table of contents says 1,000 bytes."""
    found = zip_of(folder / "a.zip", "a/00.png", zeros(num_bytes), compression)
    content = bytearray((folder / "a.zip").read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    (begin,) = struct.unpack_from("<I", content, entry + 42)
    struct.pack_into("<I", content, entry + 24, 1000)
    struct.pack_into("<I", content, begin + 22, 1000)
    (folder / "a.zip").write_bytes(content)
    return found


def zip_lies_bzip2(folder):
    return zip_lies(folder, zipfile.ZIP_BZIP2, 500_000_000)


def zip_of_bitmaps(folder):
    """A hundred images that are each allowed, of 2.7 GB together."""
    path = folder / "a.zip"
    bitmap = image(np.zeros((4096, 4096, 3), np.uint8), "bmp")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as writer:
        for label in "ab":
            for number in range(27):
                writer.writestr(f"{label}/{number}.bmp", bitmap)
    return "images", path, ""


def table(path, entry_name, num_entries):
    """An archive whose table of contents is one entry, again and again."""
    entry = struct.pack(
        "<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, len(entry_name), 0, 0, 0, 0, 0, 0
    )
    size = num_entries * (len(entry) + len(entry_name))
    with path.open("wb") as stream:
        for _ in range(num_entries // 1000):
            stream.write((entry + entry_name) * 1000)
        stream.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, size, 0, 0))
    return "images", path, ""


def zip_of_many(folder):
    """Twenty million entries: zipfile would make objects of 10 GB."""
    return table(folder / "a.zip", b"a/0.png", 20_000_000)


def zip_of_many_allowed(folder):
    """As many as the limit on the table lets through, with names as short as can be."""
    return table(folder / "a.zip", b"a", 713_000)


def png_huge(folder):
    """A PNG of 60,000 × 60,000 pixels in 3.5 MB."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    lines = compressed(60_000 * 60_001, wbits=15)
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    return image_folder(folder, content)


def png_many(folder):
    """Images of 16 million pixels in 50 kB, as many as are allowed."""
    return image_folder(folder, image(np.zeros((4096, 4096, 3), np.uint8)), 64)


def image_folder(folder, content, count=4):
    for label in "ab":
        (folder / "pets" / label).mkdir(parents=True)
        for number in range(count):
            (folder / "pets" / label / f"{number}.png").write_bytes(content)
    return "images", folder / "pets", ""


def text_of_holes(folder):
    for name in ("train.txt", "valid.txt", "test.txt"):
        (folder / name).write_text("some words\nand more\n")
    os.truncate(folder / "train.txt", 2**40)
    return "text", folder, ""


def zip_of_holes(folder):
    (folder / "a.zip").touch()
    os.truncate(folder / "a.zip", 2**40)
    return "images", folder / "a.zip", ""


def links_doubling(folder):
    """Thirty folders, each with two links to the next: a billion paths."""
    for number in range(30):
        (folder / f"pets{number}").mkdir()
        for name in "ab":
            (folder / f"pets{number}" / name).symlink_to(f"../pets{number + 1}")
    (folder / "pets30").mkdir()
    return "images", folder / "pets0", ""


def links_in_a_circle(folder):
    for name in "ab":
        (folder / "pets" / name).mkdir(parents=True)
        for other in "ab":
            (folder / "pets" / name / other).symlink_to(f"../{other}")
    return "images", folder / "pets", ""


BOMBS = (
    mnist_gz,
    cifar_tar,
    cifar_tar_header,
    cifar_tar_holes,
    zip_honest,
    zip_lies,
    zip_lies_bzip2,
    zip_of_bitmaps,
    zip_of_many,
    zip_of_many_allowed,
    zip_of_holes,
    png_huge,
    png_many,
    text_of_holes,
    links_doubling,
    links_in_a_circle,
)


@pytest.mark.parametrize("make", BOMBS, ids=lambda make: make.__name__)
def test_bombs(tmp_path, make):
    folder = tmp_path / "data"
    folder.mkdir()
    kind, name, data_dir = make(folder)
    size = sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    done = subprocess.run(
        [sys.executable, "-c", LOAD, kind, name, data_dir],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    told = found["said"] is not None and str(folder) in found["said"]
    measured = {
        "bytes": size,
        "seconds": round(found["seconds"], 2),
        "megabytes": round(found["growth"] / 1e6),
        "said": str(found["said"]).replace(str(folder), "DATA"),
    }
    print(json.dumps({make.__name__: measured}))  # noqa: T201
    report(f"bomb {make.__name__}", {make.__name__: {"refused": int(told), "wrong": int(not told)}}, **measured)
    assert told, found
    assert found["said"].count("Expected") == 1
    assert found["said"].isprintable()
    assert found["seconds"] < MAX_SECONDS, found
    assert found["growth"] < MAX_GROWTH_BYTES, found
