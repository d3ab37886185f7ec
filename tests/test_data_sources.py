"""Where files come from: the search order, and downloads from a server on this machine."""

import dataclasses
import gzip
import hashlib
import http.server
import io
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pooch
import pytest

from forgetless.data import files, sources
from forgetless.data.sources import Source
from forgetless.errors import InputError

CONTENT = b"forty-two" * 1000
PACKED = gzip.compress(CONTENT, mtime=0)
SOURCE = Source(
    paths=("set/numbers", "set/numbers.gz", "numbers"),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    url="http://127.0.0.1:9/numbers.gz",
    download_path="set/numbers.gz",
    download_hash="md5:" + hashlib.md5(PACKED).hexdigest(),
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no folder named in the environment."""
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("FORGETLESS_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(sources, "SCHEMES", ("http",))  # the server has no certificate
    return tmp_path / "cache"


class Server:
    """A web server on 127.0.0.1 with `files`, and addresses that send on; it notes what it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.sends_on: dict[str, str] = {}
        self.missing_bytes = 0  # of each answer, before the connection is closed
        self.requests: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                content = server.files.get(self.path)
                there = server.sends_on.get(self.path)
                self.send_response(302 if there else 404 if content is None else 200)
                if there:
                    self.send_header("Location", there)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write((content or b"")[server.missing_bytes :])

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.http.shutdown()
    thread.join()
    running.http.server_close()


def at(server: Server, **changes: object) -> Source:
    return dataclasses.replace(SOURCE, url=f"{server.address}/numbers.gz", **changes)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_named_folder_is_the_only_one_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGETLESS_DATA", str(tmp_path / "environment"))
    assert sources.search_folders(tmp_path) == (tmp_path,)


def test_the_environment_goes_before_the_cache(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_cache = write(cache / "set/numbers", CONTENT)
    assert sources.fetch(SOURCE, None) == in_cache
    monkeypatch.setenv("FORGETLESS_DATA", str(tmp_path / "environment"))
    assert sources.fetch(SOURCE, None) == in_cache
    in_environment = write(tmp_path / "environment/numbers", CONTENT)
    assert sources.fetch(SOURCE, None) == in_environment


def test_an_empty_environment_variable_counts_as_none(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGETLESS_DATA", "")
    assert sources.search_folders(None) == (cache,)


@pytest.mark.parametrize("number", range(3))
def test_the_paths_of_a_source_are_tried_in_order(tmp_path: Path, number: int) -> None:
    folder = tmp_path / "here"
    for path in SOURCE.paths[number:]:
        write(folder / path, b"")
    assert sources.fetch(SOURCE, folder) == folder / SOURCE.paths[number]


def test_the_home_folder_can_be_written_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = write(tmp_path / "data/numbers", b"")
    assert sources.fetch(SOURCE, "~/data") == found


def test_a_named_folder_without_the_file_is_an_error_and_downloads_nothing(tmp_path: Path, server: Server) -> None:
    server.files["/numbers.gz"] = PACKED
    pattern = rf"^Expected the file set/numbers or set/numbers.gz or numbers in {tmp_path}, but got no such file\. Put"
    with pytest.raises(InputError, match=pattern):
        sources.fetch(at(server), tmp_path)
    assert server.requests == []


def test_a_file_without_an_address_is_an_error(cache: Path) -> None:
    with pytest.raises(InputError, match=rf"in {cache}, but got no such file\..*--data-dir or FORGETLESS_DATA"):
        sources.fetch(Source(paths=("mine.txt",)), None)
    with pytest.raises(InputError, match=r"^Expected mine\.txt to have an address, but got None\."):
        sources.download(Source(paths=("mine.txt",)))


def test_a_download_happens_once(
    server: Server,
    cache: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pooch.get_logger(), "handlers", [caplog.handler])
    server.files["/numbers.gz"] = PACKED
    for _ in range(2):
        path = sources.fetch(at(server), None)
        assert path == cache / "set/numbers.gz"
        assert files.read_bytes(path) == CONTENT
    assert server.requests == ["/numbers.gz"]
    assert capfd.readouterr() == ("", "")  # no terminal, no progress
    assert caplog.records == []


def test_a_damaged_copy_in_the_cache_is_downloaded_again(server: Server, cache: Path) -> None:
    write(cache / "set/numbers.gz", PACKED[:-1])
    server.files["/numbers.gz"] = PACKED
    assert sources.fetch(at(server), None).read_bytes() == PACKED


def test_a_copy_in_a_named_folder_is_never_replaced(server: Server, cache: Path) -> None:
    damaged = write(cache / "set/numbers.gz", PACKED[:-1])
    server.files["/numbers.gz"] = PACKED
    assert sources.fetch(at(server), cache) == damaged
    assert server.requests == []


def test_a_download_with_a_wrong_checksum_leaves_nothing(server: Server, cache: Path) -> None:
    server.files["/numbers.gz"] = PACKED + b"more"
    with pytest.raises(InputError, match=rf"^Expected the download {server.address}/numbers.gz to have the checksum"):
        sources.fetch(at(server), None)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_a_missing_address_is_told(server: Server) -> None:
    with pytest.raises(InputError, match=r"but got HTTPError: 404 .*\. Check the network, or name a local folder"):
        sources.fetch(at(server), None)


def test_a_dead_server_is_told_in_one_sentence_with_its_address() -> None:
    with socket.socket() as unused:  # bound and not listening: nobody else can take the port
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/numbers.gz"
        with pytest.raises(
            InputError, match=rf"^Expected to download {url} into .*, but got ConnectionRefusedError: "
        ) as caught:
            sources.fetch(dataclasses.replace(SOURCE, url=url), None)
    assert "--data-dir or FORGETLESS_DATA" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_told(server: Server, cache: Path) -> None:
    cache.write_bytes(b"a file where the folder should be")
    server.files["/numbers.gz"] = PACKED
    with pytest.raises(InputError, match=rf"^Expected to download .* into {cache}, but got"):
        sources.fetch(at(server), None)


def test_pooch_gets_its_log_level_back(server: Server) -> None:
    server.files["/numbers.gz"] = PACKED
    logger = pooch.get_logger()
    before = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        sources.fetch(at(server), None)
        assert logger.level == logging.DEBUG
    finally:
        logger.setLevel(before)


def test_a_terminal_is_shown_the_progress(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    server.files["/numbers.gz"] = PACKED
    sources.fetch(at(server), None)
    assert "numbers.gz" in terminal.getvalue()


# Safety


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a", "ftp://127.0.0.1/a", "file:///etc/passwd", "/etc/passwd", "a"])
def test_only_encrypted_addresses_are_asked(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.undo()
    assert sources.SCHEMES == ("https",)
    monkeypatch.setattr(pooch, "retrieve", None)
    with pytest.raises(InputError, match=rf"^Expected an address of https, but got {url}\. Name a local folder"):
        sources.download(dataclasses.replace(SOURCE, url=url))


def test_a_download_without_a_checksum_is_refused(server: Server) -> None:
    server.files["/numbers.gz"] = PACKED
    with pytest.raises(
        InputError, match=rf"^Expected the download {server.address}/numbers.gz to have a checksum, but"
    ):
        sources.fetch(at(server, download_hash=None), None)
    assert server.requests == []


def test_being_sent_on_is_followed(server: Server) -> None:
    server.sends_on = {"/numbers.gz": "/b", "/b": f"{server.address}/c"}
    server.files["/c"] = PACKED
    assert sources.fetch(at(server), None).read_bytes() == PACKED
    assert server.requests == ["/numbers.gz", "/b", "/c"]


@pytest.mark.parametrize("there", ["other://127.0.0.1:9/b", "ftp://127.0.0.1/b", "file:///etc/passwd", "//[/b"])
def test_being_sent_on_to_another_kind_of_address_is_refused(server: Server, cache: Path, there: str) -> None:
    server.sends_on = {"/numbers.gz": "/b", "/b": there}
    with pytest.raises(InputError, match=r"^Expected an address of http, but got .*\. Name a local folder"):
        sources.fetch(at(server), None)
    assert server.requests == ["/numbers.gz", "/b"]
    assert files_below(cache) == []


def test_being_sent_from_https_to_http_is_refused(monkeypatch: pytest.MonkeyPatch, server: Server, cache: Path) -> None:
    server.sends_on = {"/numbers.gz": "/b"}
    server.files["/b"] = PACKED
    monkeypatch.setattr(sources, "SCHEMES", ("https",))
    # The first address is not checked here, for the server has no certificate.
    with pytest.raises(InputError, match=rf"^Expected an address of https, but got {server.address}/b\."):
        sources._retrieve(f"{server.address}/numbers.gz", "numbers.gz", str(SOURCE.download_hash), None)
    assert files_below(cache) == []


def test_a_download_that_is_too_large_is_stopped(server: Server, cache: Path) -> None:
    server.files["/numbers.gz"] = PACKED
    assert sources.fetch(at(server, download_bytes=len(PACKED)), None).read_bytes() == PACKED
    (cache / "set/numbers.gz").unlink()
    pattern = (
        rf"^Expected the download {server.address}/numbers\.gz to have at most {len(PACKED) - 1} bytes, but got more"
    )
    with pytest.raises(InputError, match=pattern):
        sources.fetch(at(server, download_bytes=len(PACKED) - 1), None)
    assert files_below(cache) == []


def test_a_download_that_breaks_off_leaves_nothing(server: Server, cache: Path) -> None:
    server.files["/numbers.gz"] = PACKED
    server.missing_bytes = 5
    with pytest.raises(InputError, match=r"^Expected (to download|the download) "):
        sources.fetch(at(server), None)
    assert files_below(cache) == []


def test_a_pipe_in_the_cache_is_refused(server: Server, cache: Path) -> None:
    (cache / "set").mkdir(parents=True)
    os.mkfifo(cache / "set/numbers.gz")
    with pytest.raises(InputError, match=r"numbers\.gz to be a regular file, but got a named pipe\."):
        sources.fetch(at(server), None)
    assert server.requests == []
