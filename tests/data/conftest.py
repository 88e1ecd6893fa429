"""A web server on loopback that serves one file, and fails in the ways that servers do."""

import dataclasses
import http.server
import socket
import struct
import threading

import pytest

from diffusion_distill.data import download
from diffusion_distill.terminal import console


@dataclasses.dataclass(frozen=True)
class Answer:
    """How the server answers one request.

    Attributes:
        status: an error to answer with.
        length: whether the length is told.
        stop_after: bytes of the body after which the connection ends.
        reset: whether it then ends with a reset instead of an orderly close.
        location: where to redirect to.
        wait: an event to wait for before answering.
    """

    status: int = 200
    length: bool = True
    stop_after: int | None = None
    reset: bool = False
    location: str = ""
    wait: threading.Event | None = None


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at `url`; `answers` are used up first, `asked` counts requests."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/file"
        self.content = b""
        self.answers: list[Answer] = []
        self.asked = 0

    def handle_error(self, request, client_address):
        pass  # clients that hang up are part of the tests


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.asked += 1
        answer = server.answers.pop(0) if server.answers else Answer()
        if answer.wait:
            answer.wait.wait(10)
        if answer.location:
            self.send_response(302)
            self.send_header("Location", answer.location)
            self.end_headers()
        elif answer.status != 200:
            self.send_error(answer.status)
        else:
            self._send(answer, server.content)

    def _send(self, answer, content):
        self.send_response(200)
        if answer.length:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: answer.stop_after])
        if answer.reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()


@pytest.fixture
def server(monkeypatch):
    """A running `Server`; nothing waits between two attempts."""
    monkeypatch.setattr(download, "WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def answer(server):
    """Sets how the server answers the next requests: the fields of an `Answer` for each."""

    def answer(*answers):
        server.answers += [Answer(**fields) for fields in answers]

    return answer


@pytest.fixture
def said(capsys):
    """What was said since the last call, of folders of any test before, too."""
    console.say_once.cache_clear()
    return lambda: capsys.readouterr().out
