"""Downloads from a server of our own, on 127.0.0.1."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_cifar import SMALL10, make, write

from minires.data import cifar
from minires.data.download import fetch

CONTENT = np.random.default_rng(0).bytes(100_000)
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` under every name but /absent; notes the Range of each request."""

    content = CONTENT
    cut: int | None = None  # close the connection after so many bytes of a reply
    ranges_work = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers["Range"]
        server.asked.append(wanted)
        if self.path == "/absent":
            self.send_error(404)
            return
        first = int(wanted.split("=")[1].rstrip("-")) if wanted and server.ranges_work else 0
        if first >= len(server.content):
            self.send_error(416)
            return
        body = server.content[first:]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cut])

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_whole_download(tmp_path: Path, server: Server) -> None:
    path = fetch(server.url, tmp_path / "new" / "file.bin", MD5)
    assert path == tmp_path / "new" / "file.bin"
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == ["file.bin"]
    assert server.asked == [None]
    fetch(server.url, path, MD5)
    assert server.asked == [None]  # the file is there: nothing is asked


def test_an_interrupted_download_is_resumed(tmp_path: Path, server: Server) -> None:
    path = tmp_path / "file.bin"
    server.cut = 40_000
    for got in ("40,000", "80,000"):
        with pytest.raises(ConnectionError, match=f"after {got} of 100,000 bytes.*to resume"):
            fetch(server.url, path, MD5)
        assert not path.exists()
    assert os.listdir(tmp_path) == ["file.bin.part"]
    server.cut = None
    fetch(server.url, path, MD5)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=40000-", "bytes=80000-"]
    assert os.listdir(tmp_path) == ["file.bin"]


def test_a_server_without_ranges_sends_all_again(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"an old beginning")
    server.ranges_work = False
    fetch(server.url, tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_part_that_is_whole_already(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    fetch(server.url, tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_wrong_bytes_are_thrown_away(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"of another file")
    with pytest.raises(ValueError, match="does not match the known hash"):
        fetch(server.url, tmp_path / "file.bin", MD5)
    assert os.listdir(tmp_path) == []
    fetch(server.url, tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_no_such_file_and_no_server(tmp_path: Path, server: Server) -> None:
    with pytest.raises(ConnectionError, match="404"):
        fetch(server.url + "absent", tmp_path / "file.bin", MD5)
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match=r"refused.*put it at .*file\.bin$"):
        fetch(server.url, tmp_path / "file.bin", MD5)
    assert os.listdir(tmp_path) == []


def test_cifar_downloads_what_is_not_there(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write(SMALL10, "binary", tmp_path, packed=True)
    server.content = archive.read_bytes()
    md5 = hashlib.md5(server.content).hexdigest()
    layout = dataclasses.replace(SMALL10, binary=dataclasses.replace(SMALL10.binary, md5=md5))
    monkeypatch.setattr(cifar, "URL", server.url)
    for _ in range(2):
        data = cifar.read(layout, tmp_path / "new", "test", download=True)
        assert np.array_equal(data.images, make(SMALL10, "test")[0])
    assert len(server.asked) == 1  # the second time it was there
    assert os.listdir(tmp_path / "new") == ["cifar-10-binary.tar.gz"]
    with pytest.raises(ValueError, match="does not match the known hash"):
        cifar.read(SMALL10, tmp_path / "other", "test", download=True)  # the official MD5
