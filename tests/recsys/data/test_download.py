"""Downloads against a small server on this machine: resume, checksum, failures."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from recsys.data.download import fetch, verify

BODY = bytes(range(256)) * 40


class Server(ThreadingHTTPServer):
    """Serves BODY; settings are attributes that tests change."""

    body = BODY
    tag = '"one"'
    ranges = True
    cut: int | None = None
    asked: list[str | None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        body, start = self.server.body, 0
        same = self.headers.get("If-Range", self.server.tag) == self.server.tag
        if asked and self.server.ranges and same:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("ETag", self.server.tag)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : self.server.cut])

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server(("127.0.0.1", 0), Handler)
    served.asked = []
    thread = threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()


MD5 = "md5:" + hashlib.md5(BODY).hexdigest()
SHA256 = "sha256:" + hashlib.sha256(BODY).hexdigest()


@pytest.mark.parametrize("checksum", [MD5, SHA256, None])
def test_a_file_is_downloaded_whole(server: Server, tmp_path, checksum) -> None:
    path = fetch(server.url, tmp_path / "new" / "file.bin", checksum=checksum)
    assert path.read_bytes() == BODY
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_a_file_that_is_there_is_not_fetched_again(server: Server, tmp_path) -> None:
    (tmp_path / "file.bin").write_bytes(BODY)
    fetch(server.url, tmp_path / "file.bin", checksum=MD5)
    assert server.asked == []


def test_a_broken_download_goes_on_where_it_stopped(server: Server, tmp_path) -> None:
    server.cut = 1000
    with pytest.raises(ValueError, match="closed after 1000 of 10240 bytes.*Run again"):
        fetch(server.url, tmp_path / "file.bin", checksum=MD5)
    assert not (tmp_path / "file.bin").exists()
    server.cut = None
    assert fetch(server.url, tmp_path / "file.bin", checksum=MD5).read_bytes() == BODY
    assert server.asked == [None, "bytes=1000-"]


def test_a_server_without_ranges_sends_it_all_again(server: Server, tmp_path) -> None:
    (tmp_path / "file.bin.part").write_bytes(BODY[:100])
    server.ranges = False
    assert fetch(server.url, tmp_path / "file.bin", checksum=MD5).read_bytes() == BODY


def test_a_file_that_changed_meanwhile_is_fetched_from_its_start(server: Server, tmp_path) -> None:
    server.cut = 1000
    with pytest.raises(ValueError, match="1000"):
        fetch(server.url, tmp_path / "file.bin")
    server.cut, server.tag, server.body = None, '"two"', b"other" * 1000
    assert fetch(server.url, tmp_path / "file.bin").read_bytes() == server.body


def test_a_part_that_is_complete_only_needs_its_checksum(server: Server, tmp_path) -> None:
    (tmp_path / "file.bin.part").write_bytes(BODY)
    assert fetch(server.url, tmp_path / "file.bin", checksum=MD5).read_bytes() == BODY


def test_a_part_that_is_too_long_is_thrown_away(server: Server, tmp_path) -> None:
    (tmp_path / "file.bin.part").write_bytes(BODY + b"x")
    with pytest.raises(ValueError, match="could not be downloaded"):
        fetch(server.url, tmp_path / "file.bin", checksum=MD5)
    assert fetch(server.url, tmp_path / "file.bin", checksum=MD5).read_bytes() == BODY


def test_a_wrong_checksum_leaves_nothing_behind(server: Server, tmp_path) -> None:
    with pytest.raises(ValueError, match=f"{MD5[4:]}.*feed was published"):
        fetch(server.url, tmp_path / "file.bin", checksum="md5:feed")
    assert list(tmp_path.iterdir()) == []


def test_no_network_is_told_with_a_way_out(server: Server, tmp_path) -> None:
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(ValueError, match="without a network, fetch it elsewhere.*file.bin"):
        fetch(url, tmp_path / "file.bin", timeout_s=2)


def test_only_http_addresses_are_opened(tmp_path) -> None:
    with pytest.raises(ValueError, match="file:///etc/hostname"):
        fetch("file:///etc/hostname", tmp_path / "x")


@pytest.mark.parametrize("checksum", ["crc:1", "md5:", "feed"])
def test_an_unknown_kind_of_checksum_is_refused(tmp_path, checksum) -> None:
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(ValueError, match=checksum):
        verify(tmp_path / "x", checksum)
