"""What every command says, and how: one line at a time, at once."""

import os
import sys
import time

from diffusion_distill.devices import distributed

_display = None  # the live.Display at the bottom of the terminal, while there is one


def attach(display) -> None:
    """Lines go above this live.Display from now on; None for no more."""
    global _display
    _display = display


def say(line: str) -> None:
    """One line to standard output, at once, terminal or not; of several processes, from one."""
    if not distributed.is_main():
        return
    if _display is not None:
        _display.say(line)
    else:
        print(line, file=sys.stdout, flush=True)


def say_in_handler(line: str) -> None:
    """One line to standard output from a signal handler, whatever the process is in the middle of.

    So it does not print: a signal may come in the middle of a print.
    """
    if _display is not None:
        _display.say_in_handler(line)
    else:
        os.write(1, f"{line}\n".encode())


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 42s, 3m05s, 2h07m."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


class Countdown:
    """Lines of progress with the time left, for work of a known amount."""

    def __init__(self, what: str, total: int, unit: str, every_seconds: float = 5.0):
        """`what` goes before each line."""
        self._what, self._total, self._unit, self._every = what, total, unit, every_seconds
        self._done = self._skipped = 0
        self._began = self._said = time.monotonic()

    def skip(self, count: int) -> None:
        """As much was done before: it counts, but not for the rate."""
        self._done += count
        self._skipped += count

    def add(self, count: int) -> None:
        """As much was done now. Says how far it is, if it has not lately; always at the end."""
        self._done += count
        now = time.monotonic()
        if now - self._said < self._every and self._done < self._total:
            return
        self._said = now
        rate = (self._done - self._skipped) / max(now - self._began, 1e-9)
        say(
            f"{self._what}: {self._done:,} of {self._total:,} {self._unit}, {rate:,.0f} a second, "
            f"{duration((self._total - self._done) / rate)} left"
        )
