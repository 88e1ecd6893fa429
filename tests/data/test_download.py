"""What is downloaded is whole and right, or is not there; and what was cut off goes on."""

import hashlib
import os
import resource
import socket
import threading

import pytest

from diffusion_distill.data import download
from diffusion_distill.errors import UserError
from diffusion_distill.storage.files import locked

CONTENT = bytes(range(256)) * 4000  # about a megabyte: several blocks
SIZE = len(CONTENT)
OTHER = bytes(SIZE)  # as long, and something else


def checksum(content=CONTENT, algorithm="sha256"):
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "file.tar.gz"


@pytest.fixture
def fetch(server, path):
    """The download of the server's file to `path`."""
    server.content = CONTENT

    def fetch(url=server.url, **changed):
        return download.fetch(url, path, **{"checksum": checksum(), "size": SIZE, **changed})

    return fetch


@pytest.fixture
def part(path):
    path.parent.mkdir()
    return path.with_name("file.tar.gz.part")


def assert_whole(path):
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == [path.name]


def refused(fetch, match, **arguments):
    """The one line with which a download ends."""
    with pytest.raises(UserError, match=match) as caught:
        fetch(**arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_comes_whole_and_only_once(fetch, server, path, algorithm):
    assert fetch(checksum=checksum(algorithm=algorithm))
    assert_whole(path)
    assert not fetch(checksum=checksum(algorithm=algorithm))
    assert server.asked == [None]


def test_a_part_goes_on_where_it_ends(fetch, server, path, part):
    part.write_bytes(CONTENT[:300_000])
    fetch()
    assert_whole(path)
    assert server.asked == ["bytes=300000-"]


def test_a_complete_part_needs_no_server(fetch, server, path, part):
    part.write_bytes(CONTENT)
    fetch()
    assert_whole(path)
    assert server.asked == []


@pytest.mark.parametrize("reset", [False, True])
def test_dropped_connections_are_taken_up_again(fetch, server, path, answer, reset):
    # More drops than attempts that may bring nothing: each of these brings something.
    answer(*[{"stop_after": 150_000, "reset": reset}] * 5)
    fetch()
    assert_whole(path)
    assert len(server.asked) == 6
    assert server.asked[0] is None
    if not reset:  # a reset may take with it what was on its way
        assert server.asked[1:] == [f"bytes={150_000 * n}-" for n in range(1, 6)]


def test_an_interrupt_leaves_the_part_alone_and_the_same_call_goes_on(
    fetch, server, path, monkeypatch
):
    class Interrupting(download.Progress):
        def add(self, count):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download, "Progress", Interrupting)
        fetch()
    assert os.listdir(path.parent) == ["file.tar.gz.part"]
    have = path.with_name("file.tar.gz.part").stat().st_size
    assert 0 < have < SIZE
    fetch()
    assert_whole(path)
    assert server.asked == [None, f"bytes={have}-"]


def test_a_server_without_ranges_starts_over(fetch, server, path, part, answer):
    part.write_bytes(OTHER[:300_000])
    answer({"ranges": False})
    fetch()
    assert_whole(path)


def test_a_server_that_does_not_tell_the_length(fetch, path, answer):
    answer({"length": False, "stop_after": 200_000}, {"length": False})
    fetch()
    assert_whole(path)


@pytest.mark.parametrize("old", [OTHER[:300_000], OTHER, OTHER + b"more"])
def test_a_part_of_another_file_is_replaced(fetch, path, part, old):
    part.write_bytes(old)
    fetch()
    assert_whole(path)


def test_a_range_that_the_server_has_not_starts_over(fetch, server, path, part, answer):
    part.write_bytes(OTHER[:300_000])
    answer({"status": 416})
    fetch()
    assert_whole(path)
    assert server.asked == ["bytes=300000-", None]


def test_a_damaged_file_is_replaced(fetch, path, part, capsys):
    path.write_bytes(OTHER)
    assert fetch()
    assert_whole(path)
    assert f"{path}: its sha256 is {checksum(OTHER)[7:]}" in capsys.readouterr().out


@pytest.mark.parametrize("begun", [b"", CONTENT[:300_000]])
def test_wrong_content_is_not_kept(fetch, server, path, part, begun):
    if begun:
        part.write_bytes(begun)
    server.content = OTHER
    line = refused(fetch, "what came is not the file: its sha256 is")
    assert server.url in line
    assert checksum(OTHER)[7:] in line
    assert checksum()[7:] in line
    assert os.listdir(path.parent) == []
    assert len(server.asked) == (2 if begun else 1)


def test_another_size_is_refused_before_anything_comes(fetch, server, path):
    server.content = b"<html>Please log in</html>"
    line = refused(fetch, "the server has 26 bytes, not 1,024,000")
    assert line.startswith(server.url)
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("status", [403, 404])
def test_a_file_that_is_not_there(fetch, server, path, answer, status):
    answer({"status": status})
    line = refused(fetch, f"the server answers {status}")
    assert line.startswith(server.url)
    assert server.asked == [None]
    assert os.listdir(path.parent) == []


def test_a_server_that_is_busy_for_a_while(fetch, server, path, answer):
    answer({"status": 500}, {"status": 503}, {"status": 429})
    fetch()
    assert_whole(path)


def test_a_server_that_stays_broken(fetch, server, path, answer):
    answer(*[{"status": 500}] * 10)
    line = refused(fetch, "the server answers 500 .*, 4 times in a row")
    assert line.startswith(server.url)
    assert len(server.asked) == 4


def test_a_server_that_always_drops_and_never_goes_on_is_given_up(fetch, server, answer):
    answer(*[{"stop_after": 150_000, "ranges": False}] * 20)
    refused(fetch, "the connection dropped, 4 times in a row")
    assert len(server.asked) == 5


def test_no_network(fetch, path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
        line = refused(fetch, "Connection refused", url=url)
    assert line.startswith(url)
    assert os.listdir(path.parent) == []


def test_a_server_that_says_nothing(fetch, server, answer, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.05)
    release = threading.Event()
    answer(*[{"wait": release}] * 4)
    line = refused(fetch, "timed out")
    assert line.startswith(server.url)
    release.set()


def test_a_full_disk_keeps_what_came(fetch, server, path, part):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
        line = refused(fetch, "cannot write .*file.tar.gz.part: File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert line.startswith(server.url)
    assert part.read_bytes() == CONTENT[:400_000]
    fetch()
    assert_whole(path)
    assert server.asked == [None, "bytes=400000-"]


def test_only_the_web_is_read(fetch, tmp_path, answer):
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    for url in (secret.as_uri(), "ftp://127.0.0.1/file", "data:,hello", str(secret)):
        line = refused(fetch, "only http and https", url=url)
        assert line.startswith(url)
    answer({"location": secret.as_uri()})
    refused(fetch, "302")


def test_redirects_are_followed(fetch, server, path, part, answer):
    part.write_bytes(CONTENT[:300_000])
    answer({"location": server.url})
    fetch()
    assert_whole(path)
    assert server.asked == ["bytes=300000-"] * 2


def test_two_downloads_of_one_file_do_not_mix(fetch, part):
    with locked(part):
        refused(fetch, "in use by another process")
