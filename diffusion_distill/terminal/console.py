"""What every command says, and how: one line at a time, at once."""

import contextlib
import errno
import functools
import os
import sys
from collections.abc import Iterator

from rich.file_proxy import FileProxy

from diffusion_distill.devices import distributed


class Above(FileProxy):
    """Stands in for standard output while something is drawn at the bottom: prints go above it.

    `height` is that of the drawing, in lines. The last is empty, and the cursor is at its start.
    """

    height = 1

    def say_in_handler(self, line: str) -> None:
        """Removes the drawing, and goes down to where the next expects its end."""
        up, down = f"\x1b[{self.height - 1}A" * (self.height > 1), "\n" * (self.height - 1)
        _write(self.fileno(), f"\r{up}\x1b[J{line}\n{down}")


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """A `with`, or a decorator, of what prints: printing never ends the work that it speaks of.

    Where nobody reads any more, after `| head` or with a terminal that was closed, nothing is
    written to standard output from then on; on a full disk what is printed now is lost.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EIO):
            with contextlib.suppress(OSError, ValueError):  # what stands in for it has no number
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@unbroken()
def say(line: str) -> None:
    """One line to standard output, at once; of several processes, from one."""
    if distributed.is_main():
        print(line, flush=True)


say_once = functools.cache(say)  # however often a set, say, is opened


def say_in_handler(line: str) -> None:
    """One line to standard output from a signal handler, whatever the process is in the middle of.

    So it does not print: a signal may come in the middle of a print.
    """
    with contextlib.suppress(OSError):  # nobody reads it
        if isinstance(sys.stdout, Above):
            sys.stdout.say_in_handler(line)
        else:
            _write(1, f"{line}\n")


def _write(number: int, text: str) -> None:
    """All of it to a file by its number: a write that a signal cuts short goes on."""
    left = text.encode()
    while left:
        left = left[os.write(number, left) :]


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 42s, 3m05s, 2h07m."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
