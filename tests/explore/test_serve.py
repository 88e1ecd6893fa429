"""What is handed out: the page alone, to this machine alone; how the command ends."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from diffusion_distill.errors import UserError

pytest.importorskip("gradio", reason="gradio, of the extra explore, is not installed")

from diffusion_distill.explore import page, serve

ROOT = Path(__file__).parents[2]


def ask(address, path, method="GET", body=None, host=None):
    """(status, body) of a request for a path that nothing tidies up first."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    headers = {"Content-Type": "application/json"} | ({"Host": host} if host else {})
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(errors="replace")


@pytest.mark.parametrize(
    "route",
    [
        "/gradio_api/file={}", "/file={}", "/gradio_api/file/{}", "/file/{}",
        "/static/{}", "/assets/{}", "/static/../../../../../../../../../..{}",
        "/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..{}", "/svelte/{}", "/{}",
        "/gradio_api/proxy=file://{}", "/gradio_api/custom_component/x/client/component/..{}",
        "/gradio_api/stream/x/0/0/playlist-file?path={}", "/static/%2e%2e/%2e%2e/..{}",
    ],
)  # fmt: skip
def test_no_file_is_handed_out(finished, address, route):
    for path in ("/etc/passwd", str(finished[0] / "config.json"), "config.json"):
        for spelled in (path, quote(path, safe=""), path.replace("/", "//")):
            status, body = ask(address, route.format(spelled))
            assert status in (400, 403, 404, 405), (route, spelled)
            assert "root:" not in body
            assert "class_conditional" not in body


def test_the_page_is_handed_out_and_no_more(address):
    status, body = ask(address, "/")
    assert status == 200
    assert "Explore tiny" in body
    assert str(ROOT) not in body
    for method, path in [
        ("POST", "/gradio_api/upload"),
        ("GET", "/gradio_api/file=http://127.0.0.1:1/x"),
        ("POST", "/gradio_api/component_server"),
        ("GET", "/monitoring"),
        ("GET", "/monitoring/summary"),
        ("GET", "/gradio_api/info"),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
        ("GET", "/login"),
        ("GET", "/gradio_api/proxy=http://127.0.0.1:1/x"),
    ]:
        assert ask(address, path, method)[0] == 404, path


@pytest.fixture
def join(address):
    """Asks the page to draw, as "Draw" does, in a session of its own: (status, answer)."""
    config = json.loads(ask(address, "/config")[1])
    fn = next(d["id"] for d in config["dependencies"] if ["click"] in [t[1:] for t in d["targets"]])

    def join(session, seed="0", path="/gradio_api/queue/join"):
        data = ["student_0001", "1", seed, "", "", "1"]
        body = {"data": data, "fn_index": fn, "session_hash": session}
        return ask(address, path, "POST", json.dumps(body))

    return join


def answered(address, session):
    """What the page says of what a session asked for, to its end."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
    answer, lines = connection.getresponse(), []
    while not lines or "process_completed" not in lines[-1]:
        lines.append(answer.readline().decode())
    return "".join(lines)


def test_a_file_that_is_asked_for_as_an_input_is_not_read(finished, address, join):
    """Gradio takes some inputs as files of its own machine."""
    # A request that is to be queued is not answered past the queue.
    status, said = join("direct", path="/gradio_api/run/predict")
    assert status != 200
    assert "base64" not in said
    file = {"path": str(finished[0] / "config.json"), "meta": {"_type": "gradio.FileData"}}
    assert join("file", seed=file)[0] == 200
    said = answered(address, "file")
    assert "class_conditional" not in said
    assert "base64" not in said


def test_past_the_queue_requests_are_refused(address, join, world, monkeypatch):
    go_on, drawing = threading.Event(), threading.Event()
    real = world.samples

    def slow(*asked):
        drawing.set()
        go_on.wait(60)
        yield from real(*asked)

    monkeypatch.setattr(world, "samples", slow)
    assert join("first")[0] == 200
    assert drawing.wait(60)
    statuses = [join(f"other{n}")[0] for n in range(page.WAITING + 2)]
    assert statuses == [200] * page.WAITING + [503] * 2
    go_on.set()
    for session in ("first", *(f"other{n}" for n in range(page.WAITING))):
        assert "base64" in answered(address, session)


def test_other_sites_names_do_not_reach_it(address):
    port = urlsplit(address).port
    assert ask(address, "/", host=f"localhost:{port}")[0] == 200
    for name in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example"):
        assert ask(address, "/", host=name)[0] == 400
    assert [serve.is_loopback(h) for h in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::")] == [
        True, True, True, False, False
    ]  # fmt: skip


def test_a_port_that_is_taken(address):
    port = urlsplit(address).port
    with pytest.raises(UserError, match=f"cannot serve on 127.0.0.1, port {port}: Address already"):
        serve.start(None, "127.0.0.1", port)
    with pytest.raises(UserError, match="cannot serve on 192.0.2.1, port 0: Cannot assign"):
        serve.start(None, "192.0.2.1", 0)
    with pytest.raises(UserError, match="cannot serve on no.such.host.invalid"):
        serve.start(None, "no.such.host.invalid", 0)


def heed_interrupts():
    """What a terminal's child does; tests that run in the background hand down to ignore them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
    ids=["SIGTERM", "SIGINT"],
)
def test_the_command_serves_until_it_is_told_to_end(finished, signum, code):
    """And neither it nor gradio looks up or connects to anything at its start."""
    watch = (
        "import runpy, sys\n"
        "def hook(event, args):\n"
        "  if event in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto'):\n"
        "    print('NETWORK', event, args[-1] if event == 'socket.connect' else args[:2])\n"
        "sys.addaudithook(hook)\n"
        "runpy.run_module('diffusion_distill.explore', run_name='__main__', alter_sys=True)\n"
    )
    command = [sys.executable, "-c", watch, f"--workdir={finished[0]}", "--port=0"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, preexec_fn=heed_interrupts,
    ) as process:  # fmt: skip
        try:
            lines = []
            while not lines or "Ctrl-C ends it" not in lines[-1]:
                lines.append(process.stdout.readline())
                assert lines[-1], process.stderr.read()
            address = lines[-1].split(" at ")[1].split()[0]
            assert "3 finished stages" in lines[-1]
            assert address.startswith("http://127.0.0.1:")
            # A request for events stays open: it must not hold up the end.
            with socket.create_connection(("127.0.0.1", urlsplit(address).port)) as connection:
                connection.sendall(
                    b"GET /gradio_api/heartbeat/abc HTTP/1.1\r\nHost: localhost\r\n\r\n"
                )
                assert connection.recv(15) == b"HTTP/1.1 200 OK"
                process.send_signal(signum)
                out, said = process.communicate(timeout=60)
            assert process.returncode == code
            assert said.startswith("error: ")
            assert len(said.splitlines()) == 1
            network = [line for line in (*lines, *out.splitlines()) if "NETWORK" in line]
            assert [line for line in network if "127.0.0.1" not in line] == []
        finally:
            process.kill()
