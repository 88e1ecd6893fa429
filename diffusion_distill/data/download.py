"""One file from the web: what was cut off goes on, and only what is whole and right is kept."""

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from diffusion_distill.errors import UserError
from diffusion_distill.storage.files import locked
from diffusion_distill.terminal.console import duration, say
from diffusion_distill.terminal.progress import Progress

TIMEOUT = 30.0  # seconds without a byte, then the connection counts as dropped
WAITS = (1.0, 4.0, 10.0)  # seconds before each new attempt, for as long as nothing more comes
BLOCK = 2**18  # most bytes read at once


def fetch(url: str, path: Path, *, checksum: str, size: int) -> bool:
    """Downloads a file to `path`, unless it is there and right.

    What has come stands in `path.part` until it is whole. However a download ends, the same call
    goes on where it stood, where the server can (a Range request); a connection that drops is
    taken up again by itself. A part that does not fit what is on the server now shows in the
    checksum, and is then downloaded once more from the beginning.

    Args:
        url: http or https.
        path: of the file; its folder is made.
        checksum: of the whole file, as "md5:..." or "sha256:..." (any of hashlib's names).
        size: bytes of the whole file.

    Returns:
        Whether anything was downloaded.

    Raises:
        UserError: the address cannot be reached or has no such file, the disk is full, the file
            has another size or checksum, or another process downloads it; one line with the url.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url}: only http and https addresses can be downloaded")
    if path.exists():
        wrong = _wrong(path, checksum, size)
        if not wrong:
            return False
        say(f"{path}: {wrong}; it is downloaded anew")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with locked(part):
        try:
            _fetch_part(url, part, checksum, size)
            os.replace(part, path)
        finally:
            if part.exists() and not part.stat().st_size:
                part.unlink()
    return True


def _fetch_part(url: str, part: Path, checksum: str, size: int) -> None:
    """Brings `part` to the whole file, checked and on the disk; a wrong one is emptied."""
    resumed = part.stat().st_size > 0
    _complete(url, part, size)
    wrong = _wrong(part, checksum, size)
    if wrong and resumed:
        say(f"{part}: {wrong}; starting over")
        os.truncate(part, 0)
        _complete(url, part, size)
        wrong = _wrong(part, checksum, size)
    if wrong:
        os.truncate(part, 0)
        raise UserError(f"{url}: what came is not the file: {wrong}")
    with open(part, "rb") as file:
        os.fsync(file.fileno())


def _wrong(path: Path, checksum: str, size: int) -> str:
    """What is wrong with a file; "" where its size and checksum are right."""
    found_size = path.stat().st_size
    if found_size != size:
        return f"it has {found_size:,} bytes, not {size:,}"
    algorithm, _, expected = checksum.partition(":")
    with open(path, "rb") as file:
        new = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    found = new.hexdigest()
    return "" if found == expected else f"its {algorithm} is {found}, not {expected}"


def _complete(url: str, part: Path, size: int) -> None:
    """Brings `part` to `size` bytes, over as many connections as that takes.

    Raises:
        UserError: the server refuses, or attempt after attempt brings nothing more.
    """
    opener = _opener()
    had, failures = part.stat().st_size, 0
    say(f"{url}: {size / 1e6:,.1f} MB" + (f", {had / 1e6:,.1f} of them here already" * (had > 0)))
    while part.stat().st_size < size:
        problem = "the connection dropped"
        try:
            _receive(opener, url, part, size)
        except urllib.error.HTTPError as error:
            problem = f"the server answers {error.code} {error.reason}"
            error.close()
            if error.code == 416:  # the part ends beyond the end of what the server has now
                os.truncate(part, 0)
            elif error.code < 500 and error.code not in (408, 429):
                raise UserError(f"{url}: {problem}") from error
        except (OSError, http.client.HTTPException) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        have = part.stat().st_size
        if have == size:
            return
        # Only what was never reached before counts: a server that ignores Range and drops every
        # connection brings something each time, and would be asked for ever.
        failures = 0 if have > had else failures + 1
        had = max(had, have)
        if failures > len(WAITS):
            raise UserError(f"{url}: {problem}, {failures} times in a row")
        wait = WAITS[max(failures - 1, 0)]
        say(f"{url}: {problem} at {have / 1e6:,.1f} MB; trying again in {duration(wait)}")
        time.sleep(wait)


def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https, by the environment's proxies; redirects lead to nothing else."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _receive(opener: urllib.request.OpenerDirector, url: str, part: Path, size: int) -> None:
    """Appends what one connection brings.

    Raises:
        UserError: the server has a file of another size, or the part cannot be written.
        OSError, http.client.HTTPException: the connection failed.
    """
    with open(part, "ab", buffering=0) as file:
        have = file.tell()
        headers = {"User-Agent": "diffusion_distill"}
        if have:
            headers["Range"] = f"bytes={have}-"
        request = urllib.request.Request(url, headers=headers)
        with opener.open(request, timeout=TIMEOUT) as response:
            total = _total(response)
            if total not in (None, size):
                raise UserError(f"{url}: the server has {total:,} bytes, not {size:,}")
            if have and response.status != 206:  # the whole file, though a part was asked for
                file.truncate(0)
                have = 0
            with Progress(part.stem, size, "bytes") as progress:
                progress.skip(have)
                while have < size and (block := response.read1(min(BLOCK, size - have))):
                    _write(url, file, block)
                    have += len(block)
                    progress.add(len(block))


def _total(response: http.client.HTTPResponse) -> int | None:
    """Bytes of the whole file, as the server says; None where it does not."""
    if response.status == 206:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        total = response.headers.get("Content-Length", "")
    return int(total) if total.isdecimal() else None


def _write(url: str, file, block: bytes) -> None:
    """Writes all of `block`. Raises UserError: the disk is full, say."""
    view = memoryview(block)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError as error:
        raise UserError(f"{url}: cannot write {file.name}: {error.strerror}") from error
