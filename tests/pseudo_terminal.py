"""A terminal for tests: a pseudo-terminal, and what a person sees on it.

It holds some 4 kB: who writes more before somebody reads waits for ever.
"""

import fcntl
import os
import pty
import select
import struct
import termios

import pyte


class Terminal:
    """`stdout` is a text file on it; `screen` what is to be seen after `read`."""

    def __init__(self, columns=80, rows=24):
        self.fd, self.theirs = pty.openpty()
        self.stdout = os.fdopen(os.dup(self.theirs), "w", encoding="utf-8")
        self.screen = pyte.HistoryScreen(columns, rows, history=1000, ratio=1)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.resize(columns, rows)

    def resize(self, columns, rows):
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns)

    def read(self, timeout=0.05):
        """Takes in what was written, waiting for at most so many seconds; the lines to be seen."""
        while select.select([self.fd], [], [], timeout)[0]:
            data = os.read(self.fd, 65536)
            self.raw += data
            self._stream.feed(data)
            timeout = 0.0
        return self.lines()

    def lines(self):
        """Lines from the first ever written to the last that is not empty."""
        above = [[line[x].data for x in range(self.screen.columns)]
                 for line in self.screen.history.top]  # fmt: skip
        text = "\n".join([*("".join(line) for line in above), *self.screen.display])
        return [line.rstrip() for line in text.rstrip().split("\n")]

    def close(self):
        self.stdout.close()
        os.close(self.theirs)
        os.close(self.fd)
