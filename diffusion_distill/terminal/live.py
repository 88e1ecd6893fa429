"""The live display of a run on a terminal: where it stands, in some lines that are drawn again."""

import dataclasses
import os
import sys
import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from diffusion_distill.devices import distributed
from diffusion_distill.terminal import console

EVERY = 0.2  # seconds between two drawings, at least: a thousand updates a second cost no more
WIDEST = 72  # columns; what is wider than a terminal becomes is wrapped by it, and left behind


@dataclasses.dataclass(frozen=True)
class Frame:
    """What is shown at one time.

    Attributes:
        title: pieces of text: the stage, which of how many, what is done.
        done, total: where the bar stands.
        count: the same in words.
        facts: pieces of text under the bar: loss, images a second, time left.
    """

    title: list[str]
    done: int
    total: int
    count: str
    facts: list[str]


def can_draw() -> bool:
    """Whether standard output is a terminal, and this the process that talks.

    What a notebook runs with "!" has a terminal too, but one that cannot go back a line.
    """
    knows_how = os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
    in_notebook = "JPY_PARENT_PID" in os.environ
    return distributed.is_main() and sys.stdout.isatty() and knows_how and not in_notebook


class Display:
    """Draws frames under the lines that are said; a `with`.

    It has no thread, and never hides the cursor: whatever ends the process, the terminal is fine.
    """

    def __init__(self):
        self._console = Console(
            file=sys.stdout, force_terminal=True, force_interactive=True, highlight=False
        )
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            # Else errors that somebody sends to a file would land on the terminal.
            redirect_stderr=sys.stderr.isatty(),
        )
        self._fd = sys.stdout.fileno()
        self._drawn = -EVERY  # when
        self._height = 0  # of the frame on the terminal, in lines

    def __enter__(self) -> "Display":
        self._live.start()
        self._console.show_cursor(True)
        console.attach(self)
        return self

    def __exit__(self, *exception) -> None:
        console.attach(None)
        self._live.stop()

    def is_due(self) -> bool:
        """Whether the last drawing is long enough ago for another."""
        return time.monotonic() - self._drawn >= EVERY

    def draw(self, frame: Frame) -> None:
        """Shows a frame in place of the one before."""
        columns, rows = os.get_terminal_size(self._fd)
        self._console.size = columns, rows = columns or 80, rows or 24  # some do not know theirs
        lines = _lines(frame, min(columns, WIDEST))
        self._height = min(len(lines), rows)
        self._live.update(Group(*lines), refresh=True)
        self._drawn = time.monotonic()

    def say(self, line: str) -> None:
        """A line above the frame; the terminal wraps it, so that it is copied as it was said."""
        self._console.print(Text(line), soft_wrap=True)

    def say_in_handler(self, line: str) -> None:
        """The same for a signal handler, which may come in the middle of a drawing.

        In one write: removes the frame, and goes down to where the next drawing expects its end.
        """
        up = f"\r\x1b[{self._height - 1}A\x1b[J" if self._height > 1 else "\r\x1b[J"
        os.write(self._fd, f"{up}{line}\n{chr(10) * (self._height - 1)}".encode())


def _lines(frame: Frame, width: int) -> list:
    """A frame as lines of at most so many columns; the last one is empty.

    There the cursor stays: what the terminal echoes, and what a shell says after the process was
    killed, begins a line of its own.
    """
    bar = Table.grid(padding=(0, 1, 0, 0), expand=False)
    bar.add_row(ProgressBar(frame.total, frame.done, max(width - len(frame.count) - 2, 4)),
                _line(frame.count))  # fmt: skip
    return [
        *(_line(text, "bold") for text in _filled(frame.title, width)),
        bar,
        *(_line(text) for text in _filled(frame.facts, width)),
        _line(""),
    ]


def _line(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _filled(pieces: list[str], width: int) -> list[str]:
    """Pieces joined by commas into as few lines of at most `width` columns as they fit in."""
    lines = []
    for piece in pieces:
        if lines and len(lines[-1]) + 2 + len(piece) <= width:
            lines[-1] += f", {piece}"
        else:
            lines.append(piece)
    return lines
