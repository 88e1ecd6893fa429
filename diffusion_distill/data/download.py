"""One file from the web: only what is whole and right is kept.

By urllib: of the libraries for this, pooch asks again for what the server has not, reads on past
the expected size, and leaves a file of a random name behind when it is killed. As there, what was
cut off is not gone on with: that costs one file, of 170 MB for CIFAR-10.
"""

import errno
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
WAITS = (1.0, 4.0, 10.0)  # seconds before each new attempt
BLOCK = 2**18  # most bytes read at once
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # what no new attempt puts right


def download_file(url: str, path: Path, *, checksum: str, size: int) -> bool:
    """Downloads a file to `path`, unless it is there and right; returns whether it downloaded.

    Where the connection drops, or the server is busy, it begins anew, a few times.

    Args:
        url: http or https.
        path: of the file; its folder is made.
        checksum: of the file, as "md5:..." or "sha256:..." (any of hashlib's names).
        size: of the file, in bytes.

    Raises:
        UserError: the address cannot be reached or has no such file, the disk is full, the file
            has another size or checksum, or another process downloads it; one line with the url.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url}: only http and https addresses can be downloaded")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with locked(part):
        try:
            if path.exists():
                wrong = _wrong(path, checksum, size)
                if not wrong:
                    return False
                say(f"{path}: {wrong}; it is downloaded anew")
            _receive(url, part, size)
            if wrong := _wrong(part, checksum, size):
                raise UserError(f"{url}: what came is not the file: {wrong}")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    return True


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


def _receive(url: str, part: Path, size: int) -> None:
    """Writes what the server has to `part`, in one attempt of several. Raises UserError."""
    say(f"{url}: {size / 1e6:,.1f} MB")
    for attempt, wait in enumerate((*WAITS, None), 1):
        try:
            return _attempt(url, part, size)
        except urllib.error.HTTPError as error:
            error.close()
            problem = f"the server answers {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                raise UserError(f"{url}: {problem}") from error
        except (OSError, http.client.HTTPException) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
            if getattr(error, "errno", None) in DISK:
                raise UserError(f"{url}: cannot write {part}: {error.strerror}") from error
        if wait is None:
            raise UserError(f"{url}: {problem}, {attempt} times in a row")
        have = part.stat().st_size / 1e6
        say(f"{url}: {problem} at {have:,.1f} MB; beginning anew in {duration(wait)}")
        time.sleep(wait)


def _attempt(url: str, part: Path, size: int) -> None:
    """As `_receive`. Raises UserError only where another attempt is of no use."""
    request = urllib.request.Request(url, headers={"User-Agent": "diffusion_distill"})
    with open(part, "wb") as file, _opener().open(request, timeout=TIMEOUT) as answer:
        length = answer.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) != size:
            raise UserError(f"{url}: the server has {int(length):,} bytes, not {size:,}")
        with Progress(part.stem, size, "bytes") as progress:
            while (left := size - file.tell()) and (block := answer.read1(min(BLOCK, left))):
                progress.add(file.write(block))
        if left:
            raise ConnectionError("the connection dropped")


def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https, by the environment's proxies; redirects lead to nothing else."""
    opener = urllib.request.OpenerDirector()
    for kind in "Proxy Unknown HTTP HTTPS HTTPRedirect HTTPDefaultError".split():
        opener.add_handler(getattr(urllib.request, f"{kind}Handler")())
    opener.add_handler(urllib.request.HTTPErrorProcessor())
    return opener
