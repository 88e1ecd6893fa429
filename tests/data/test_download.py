"""What is downloaded is whole and right, or is not there."""

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
def get(server, path):
    """The download of the server's file to `path`."""
    server.content = CONTENT

    def get(url=server.url, **changed):
        return download.download_file(
            url, path, **{"checksum": checksum(), "size": SIZE, **changed}
        )

    return get


def assert_whole(path):
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == [path.name]


def refused(get, match, **arguments):
    """The one line with which a download ends."""
    with pytest.raises(UserError, match=match) as caught:
        get(**arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_comes_whole_and_only_once(get, server, path, algorithm, capsys):
    assert get(checksum=checksum(algorithm=algorithm))
    assert_whole(path)
    said = capsys.readouterr().out
    assert f"{server.url}: 1.0 MB\n" in said
    assert "file.tar.gz: 1,024,000 of 1,024,000 bytes" in said
    assert not get(checksum=checksum(algorithm=algorithm))
    assert_whole(path)
    assert server.asked == 1


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("length", [False, True])
def test_a_dropped_connection_begins_anew(get, server, path, answer, reset, length, capsys):
    answer(*[{"stop_after": 150_000, "reset": reset, "length": length}] * 3)
    get()
    assert_whole(path)
    assert server.asked == 4
    assert "beginning anew" in capsys.readouterr().out


def test_what_a_stop_left_is_replaced(get, path, monkeypatch):
    class Interrupting(download.Progress):
        def add(self, count):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download, "Progress", Interrupting)
        get()
    assert os.listdir(path.parent) == []
    path.with_name("file.tar.gz.part").write_bytes(OTHER + b"more")  # as SIGKILL leaves it
    get()
    assert_whole(path)


def test_a_damaged_file_is_replaced(get, path, capsys):
    path.parent.mkdir()
    path.write_bytes(OTHER)
    assert get()
    assert_whole(path)
    assert f"{path}: its sha256 is {checksum(OTHER)[7:]}" in capsys.readouterr().out


def test_wrong_content_is_not_kept(get, server, path):
    server.content = OTHER
    line = refused(get, "what came is not the file: its sha256 is")
    assert server.url in line
    assert checksum(OTHER)[7:] in line
    assert checksum()[7:] in line
    assert os.listdir(path.parent) == []
    assert server.asked == 1


def test_a_damaged_file_stays_where_no_other_comes(get, server, path):
    path.parent.mkdir()
    path.write_bytes(OTHER)
    server.content = OTHER
    refused(get, "what came is not the file")
    assert path.read_bytes() == OTHER


def test_another_size_is_refused_before_anything_comes(get, server, path):
    server.content = b"<html>Please log in</html>"
    line = refused(get, "the server has 26 bytes, not 1,024,000")
    assert line.startswith(server.url)
    assert os.listdir(path.parent) == []


def test_a_file_that_goes_on_is_read_no_further_than_its_size(get, server, path, answer):
    answer({"length": False})
    server.content = CONTENT + b"more"
    get()
    assert_whole(path)


@pytest.mark.parametrize("status", [403, 404])
def test_a_file_that_is_not_there(get, server, path, answer, status):
    answer({"status": status})
    line = refused(get, f"the server answers {status}")
    assert line.startswith(server.url)
    assert server.asked == 1
    assert os.listdir(path.parent) == []


def test_a_server_that_is_busy_for_a_while(get, path, answer):
    answer({"status": 500}, {"status": 503}, {"status": 429})
    get()
    assert_whole(path)


def test_a_server_that_stays_broken(get, server, path, answer):
    answer(*[{"status": 500}] * 10)
    line = refused(get, "the server answers 500 .*, 4 times in a row")
    assert line.startswith(server.url)
    assert server.asked == 4
    assert os.listdir(path.parent) == []


def test_no_network(get, path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
        line = refused(get, "Connection refused", url=url)
    assert line.startswith(url)
    assert os.listdir(path.parent) == []


def test_a_server_that_says_nothing(get, server, answer, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.05)
    release = threading.Event()
    answer(*[{"wait": release}] * 4)
    line = refused(get, "timed out, 4 times in a row")
    assert line.startswith(server.url)
    release.set()


def test_a_full_disk(get, server, path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
        line = refused(get, "cannot write .*file.tar.gz.part: File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert line.startswith(server.url)
    assert os.listdir(path.parent) == []
    assert server.asked == 1


def test_only_the_web_is_read(get, tmp_path, answer):
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    for url in (secret.as_uri(), "ftp://127.0.0.1/file", "data:,hello", str(secret)):
        line = refused(get, "only http and https", url=url)
        assert line.startswith(url)
    answer({"location": secret.as_uri()})
    refused(get, "302")
    answer(*[{"location": "ftp://127.0.0.1/file"}] * 4)
    refused(get, "unknown url type: ftp")


def test_redirects_are_followed(get, server, path, answer):
    answer({"location": server.url})
    get()
    assert_whole(path)
    assert server.asked == 2


def test_two_downloads_of_one_file_do_not_mix(get, path):
    path.parent.mkdir()
    with locked(path.with_name("file.tar.gz.part")):
        refused(get, "in use by another process")
