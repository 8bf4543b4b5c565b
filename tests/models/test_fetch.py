"""Downloads from a server on loopback that can do all that goes wrong on the way."""

import concurrent.futures
import hashlib
import http.server
import random
import socket
import threading
import time

import platformdirs
import pytest

from corrq_jax.errors import FileFormatError, InputError
from corrq_jax.models import fetch as fetching
from corrq_jax.models.fetch import fetch
from corrq_jax.models.published import Published

CONTENT = random.Random(0).randbytes(300_000)
HALF = 150_000


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at every path; counts what it was asked and what it sent."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.ranges = True  # whether it can send a part
        self.says_length = True
        self.cut_at = None  # break off after so many bytes of a body
        self.answer = None  # a status instead of the file
        self.delay_s = 0.0
        self.asked = []  # the Range header of every request
        self.sent = 0  # bytes of bodies

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/weights.h5"

    def handle_error(self, request, client_address):
        """A client that hangs up is part of the tests, not a traceback on stderr."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server, wanted = self.server, self.headers["Range"]
        server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        ranged = bool(wanted) and server.ranges
        body = server.content[start:] if ranged else server.content
        if server.answer or (ranged and not body):
            self.send_response(server.answer or 416)
            self.send_header("Location", "/elsewhere.h5")
            self.end_headers()
            return
        self.send_response(206 if ranged else 200)
        if server.says_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        time.sleep(server.delay_s)
        body = body[: server.cut_at]
        self.wfile.write(body)
        server.sent += len(body)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):  # a proxy of this machine's has no way to its loopback
        monkeypatch.setenv(name, "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def published(server):
    return Published(server.url, "weights.h5", f"md5:{hashlib.md5(CONTENT).hexdigest()}")


@pytest.fixture
def unverifiable(server):
    return Published(server.url, "weights.h5", None)


@pytest.fixture
def part(tmp_path):
    return tmp_path / "weights.h5.part"


def files(folder):
    """What lies in the cache, but for the empty file that only carries the lock."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found.pop("weights.h5.lock", b"") == b""
    return found


def test_the_whole_file_is_downloaded_once(server, published, tmp_path, capfd):
    path = fetch(published, cache=tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "weights.h5"
    assert files(path.parent) == {"weights.h5": CONTENT}
    assert fetch(published, cache=path.parent) == path
    assert server.asked == [None]
    assert capfd.readouterr() == ("", "")  # nothing where stderr is no terminal


def test_it_has_the_permissions_of_a_usual_file(published, tmp_path):
    (tmp_path / "usual").touch()
    path = fetch(published, cache=tmp_path)
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_progress_is_shown_on_a_terminal(published, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    fetch(published, cache=tmp_path)
    shown = capsys.readouterr().err
    assert "weights.h5: 100%" in shown
    assert "300k/300k" in shown


def test_the_cache_is_where_the_environment_says(published, tmp_path, monkeypatch):
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "os" / name)
    monkeypatch.delenv("CORRQ_CACHE", raising=False)
    assert fetch(published) == tmp_path / "os" / "corrq_jax" / "weights.h5"
    monkeypatch.setenv("CORRQ_CACHE", str(tmp_path / "mine"))
    assert fetch(published) == tmp_path / "mine" / "weights.h5"
    assert fetch(published, cache=tmp_path / "given").parent == tmp_path / "given"


def test_a_file_put_there_by_hand_is_accepted(server, published, tmp_path):
    (tmp_path / "weights.h5").write_bytes(CONTENT)
    assert fetch(published, cache=tmp_path) == tmp_path / "weights.h5"
    assert server.asked == []
    assert [path.name for path in tmp_path.iterdir()] == ["weights.h5"]


def test_a_wrong_file_put_there_by_hand_is_named_and_left(server, published, tmp_path):
    path = tmp_path / "weights.h5"
    path.write_bytes(b"my own")
    with pytest.raises(FileFormatError) as caught:
        fetch(published, cache=tmp_path)
    found = f"md5:{hashlib.md5(b'my own').hexdigest()}"
    for word in (str(path), published.url, published.hash, found, "Move it away"):
        assert word in str(caught.value)
    assert files(tmp_path) == {"weights.h5": b"my own"}
    assert server.asked == []


def test_a_wrong_hash_leaves_nothing(server, published, tmp_path):
    server.content = b"<html>please log in</html>"
    with pytest.raises(FileFormatError) as caught:
        fetch(published, cache=tmp_path)
    found = f"md5:{hashlib.md5(server.content).hexdigest()}"
    for word in (published.url, published.hash, found, str(tmp_path / "weights.h5")):
        assert word in str(caught.value)
    assert files(tmp_path) == {}
    assert server.asked == [None]  # a transfer in one piece is not repeated


def test_an_interrupted_transfer_is_continued(server, published, part, tmp_path):
    server.cut_at = HALF
    with pytest.raises(ConnectionError) as caught:
        fetch(published, cache=tmp_path)
    kept = part.stat().st_size  # the last chunk may be lost, that is up to urllib3
    assert HALF - fetching._CHUNK_BYTES < kept <= HALF
    assert files(tmp_path) == {part.name: CONTENT[:kept]}
    for word in (f"{kept} bytes", str(part), "not sent again", "The reason: Connection broken"):
        assert word in str(caught.value)
    server.cut_at, server.sent = None, 0
    assert fetch(published, cache=tmp_path).read_bytes() == CONTENT
    assert files(tmp_path) == {"weights.h5": CONTENT}
    assert server.asked == [None, f"bytes={kept}-"]
    assert server.sent == len(CONTENT) - kept


def test_too_few_bytes_are_an_interruption(unverifiable, tmp_path, monkeypatch):
    # As with an urllib3 that does not count them, which older ones do not.
    monkeypatch.setattr("requests.Response.iter_content", lambda *_: iter([CONTENT[:HALF]]))
    with pytest.raises(ConnectionError, match=f"{HALF} bytes came of {len(CONTENT)}"):
        fetch(unverifiable, cache=tmp_path)
    assert "weights.h5" not in files(tmp_path)


def test_a_server_that_cannot_send_a_part_starts_over(server, published, part, tmp_path):
    part.write_bytes(CONTENT[:HALF])
    server.ranges = False
    assert fetch(published, cache=tmp_path).read_bytes() == CONTENT
    assert server.asked == [f"bytes={HALF}-"]  # its one answer was used, from its beginning


def test_a_part_of_another_content_is_discarded(server, published, part, tmp_path):
    part.write_bytes(b"x" * HALF)
    assert fetch(published, cache=tmp_path).read_bytes() == CONTENT
    assert files(tmp_path) == {"weights.h5": CONTENT}
    assert server.asked == [f"bytes={HALF}-", None]


def test_a_part_too_long_is_discarded(server, published, part, tmp_path):
    part.write_bytes(CONTENT + b"x")
    assert fetch(published, cache=tmp_path).read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT) + 1}-", None]


def test_a_part_that_is_whole_is_used(server, published, part, tmp_path):
    part.write_bytes(CONTENT)
    assert fetch(published, cache=tmp_path).read_bytes() == CONTENT
    assert server.sent == 0


def test_a_wrong_file_is_not_fetched_for_ever(server, published, part, tmp_path):
    part.write_bytes(CONTENT[:HALF])
    server.content = CONTENT[::-1]
    with pytest.raises(FileFormatError, match="expected"):
        fetch(published, cache=tmp_path)
    assert files(tmp_path) == {}
    assert server.asked == [f"bytes={HALF}-", None]


def test_offline_it_says_what_to_download_and_where_to_put_it(published, tmp_path, server):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # taken and not listened at: nobody answers there
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/weights.h5"
        with pytest.raises(ConnectionError) as caught:
            fetch(Published(url, "weights.h5", published.hash), cache=tmp_path)
    for word in (url, str(tmp_path / "weights.h5"), published.hash, "refused"):
        assert word in str(caught.value)
    assert "retries" not in str(caught.value)
    assert "kept" not in str(caught.value)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("status", [404, 500])
def test_an_error_of_the_server_is_not_taken_for_the_file(server, published, tmp_path, status):
    server.answer = status
    with pytest.raises(ConnectionError, match=f"answered {status}") as caught:
        fetch(published, cache=tmp_path)
    assert published.url in str(caught.value)
    assert files(tmp_path) == {}


def test_a_server_that_falls_silent_is_given_up(server, published, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "_TIMEOUT_S", (0.1, 0.1))
    server.delay_s = 0.5
    with pytest.raises(ConnectionError, match="timed out"):
        fetch(published, cache=tmp_path)


def test_those_who_fetch_at_once_share_one_transfer(server, published, tmp_path):
    server.delay_s = 0.3
    with concurrent.futures.ThreadPoolExecutor() as pool:
        calls = [pool.submit(fetch, published, cache=tmp_path) for _ in range(4)]
        paths = {call.result() for call in calls}
    assert [path.read_bytes() for path in paths] == [CONTENT]
    assert server.asked == [None]


def test_a_file_without_a_hash_is_fetched(server, unverifiable, tmp_path):
    assert fetch(unverifiable, cache=tmp_path).read_bytes() == CONTENT
    assert fetch(unverifiable, cache=tmp_path).read_bytes() == CONTENT
    assert server.asked == [None]


def test_a_file_without_a_hash_is_never_put_together(server, unverifiable, part, tmp_path):
    server.cut_at = HALF
    with pytest.raises(ConnectionError) as caught:
        fetch(unverifiable, cache=tmp_path)
    assert "kept" not in str(caught.value)
    assert "weights.h5" not in files(tmp_path)
    part.write_bytes(b"x" * HALF)
    server.cut_at = None
    assert fetch(unverifiable, cache=tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, None]


def test_a_file_without_a_hash_needs_its_length(server, unverifiable, published, tmp_path):
    server.says_length = False
    with pytest.raises(ConnectionError, match="how long"):
        fetch(unverifiable, cache=tmp_path)
    assert files(tmp_path) == {}
    fetch(published, cache=tmp_path)  # the hash says as much as the length


def test_a_file_without_a_hash_follows_no_redirect(server, unverifiable, published, tmp_path):
    server.answer = 302
    with pytest.raises(ConnectionError, match="answered 302"):
        fetch(unverifiable, cache=tmp_path)
    assert len(server.asked) == 1
    with pytest.raises(ConnectionError, match="redirects"):
        fetch(published, cache=tmp_path)
    assert len(server.asked) > 2


@pytest.mark.parametrize("host", ["example.invalid", "127.0.0.1.example.invalid", "192.0.2.1"])
def test_a_file_without_a_hash_needs_https(tmp_path, host, monkeypatch):
    monkeypatch.setattr("requests.get", lambda *_, **__: pytest.fail("it was asked for"))
    with pytest.raises(InputError, match="https") as caught:
        fetch(Published(f"http://{host}/weights.h5", "weights.h5", None), cache=tmp_path)
    assert str(tmp_path / "weights.h5") in str(caught.value)
