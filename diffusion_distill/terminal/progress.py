"""How far a piece of work is: drawn at the bottom of a terminal, elsewhere said in lines."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterable

import rich.console
import rich.progress
from rich.table import Column

from diffusion_distill.devices import distributed
from diffusion_distill.terminal.console import Above, duration, say, unbroken

EVERY = 0.2  # seconds between two drawings, at least: a thousand updates a second cost no more
WIDEST = 72  # columns; what is wider than a terminal becomes is wrapped by it, and left behind

# (label, part that is done, part that is done in a second, 0 if not known) -> seconds that all of
# a run still takes; None where that is not known.
RunLeft = Callable[[str, float, float], float | None]


def no_run(label: str, done: float, rate: float) -> float | None:
    """The `RunLeft` of work that is no part of a run."""


class Progress:
    """Says how far a piece of work is, and when it will be done; a `with`.

    On a terminal one sentence and a bar are drawn below all lines, and drawn again as the work
    goes on. It has no thread, and never hides the cursor: whatever ends the process, the terminal
    is fine. Elsewhere the sentence is a line, at most one every so many seconds. Either way the
    last one is said.

        teacher: step 45 of 600, loss 0.5636, 60 images/s, 2m27s left, run ~2m18s left
    """

    def __init__(
        self,
        label: str,  # what the sentence begins with
        total: int,  # of the work, in units
        unit: str,  # their name in the plural; or "step", for "step 45 of 600"
        every_seconds: float = 5.0,  # between two lines, at least
        images: int = 0,  # in each unit, where the speed is that of images
        run_left: RunLeft = no_run,  # asked whenever something is shown
    ):
        """Nothing is shown yet."""
        self._label, self._total, self._unit = label, total, unit
        self._every, self._images, self._run_left = every_seconds, images, run_left
        self._console = _Console(
            file=sys.stdout,
            force_terminal=True,
            force_interactive=True,
            force_jupyter=False,
            highlight=False,
            soft_wrap=True,  # the terminal wraps lines, so that they are copied as they were said
        )
        text = rich.progress.TextColumn("{task.description}", markup=False, table_column=Column())
        self._bar = _Bar(
            rich.progress.BarColumn(12),
            text,
            console=self._console,
            auto_refresh=False,
            speed_estimate_period=math.inf,  # the speed is that of the last thousand updates
            transient=True,
            # Else errors that somebody sends to a file would land on the terminal.
            redirect_stderr=sys.stderr.isatty(),
            get_time=time.monotonic,
            disable=not _can_draw(),
        )
        self._bar.add_task("", total=total)
        self._task = self._bar.tasks[0]
        self._above: Above | None = None  # while it draws
        self._drawn = 0.0  # when
        self._said: float | None = None  # when; at first, when the first units were done

    def __enter__(self) -> "Progress":
        if not self._bar.disable:
            self._above = sys.stdout = Above(self._console, sys.stdout)
            self._draw(self._sentence("starting"))
            with unbroken():
                self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._above is not None:
            with unbroken():
                self._bar.stop()
            sys.stdout = self._above.rich_proxied_file
            self._above = None

    def skip(self, count: int) -> None:
        """So many units were done before: they count, but not for the speed."""
        self._bar.reset(self._task.id, completed=self._task.completed + count)
        if self._above is not None:
            self._draw(self._sentence("starting"))

    def add(self, count: int) -> None:
        """So many more units are done."""
        self.update(self._task.completed + count)

    def update(self, done: int, fact: str = "", say_last: bool = True) -> None:
        """So many units are done in all, at most `total`.

        `fact` is what else the sentence says, such as "loss 0.5636". With `say_last` the last
        sentence becomes a line, however short ago another was.
        """
        self._bar.update(self._task.id, completed=done)
        now = time.monotonic()
        if self._said is None:  # the time before is not that of the work: programs were compiled
            self._said = now
        last = done >= self._total
        if self._above is not None and (last or now - self._drawn >= EVERY):
            self._draw(self._sentence(fact))
        is_known, is_due = self._task.speed is not None, now - self._said >= self._every
        if say_last if last else self._above is None and is_known and is_due:
            say(self._sentence(fact))
            self._said = now

    def _sentence(self, fact: str = "") -> str:
        done, total, speed = self._task.completed, self._total, self._task.speed or 0.0
        count = f"{done:,} of {total:,} {self._unit}"
        pieces = [f"step {done} of {total}" if self._unit == "step" else count, fact]
        if speed:
            images = f"{speed * self._images:,.0f} images/s"
            pieces.append(images if self._images else f"{speed:,.0f} a second")
            pieces.append(f"{duration((total - done) / speed)} left")
        whole = max(total, 1)
        if left := self._run_left(self._label, done / whole, speed / whole):
            pieces.append(f"run ~{duration(left)} left")
        return f"{self._label}: {', '.join(filter(None, pieces))}"

    @unbroken()
    def _draw(self, sentence: str) -> None:
        """Shows a sentence in place of the one before."""
        self._drawn = time.monotonic()
        columns, rows = os.get_terminal_size(self._above.fileno())
        rows = rows or 24  # some do not know theirs
        self._console.size = min(columns or 80, WIDEST), rows
        self._task.description = sentence
        lines = self._console.render_lines(self._bar.get_renderable(), pad=False)
        self._above.height = min(len(lines), rows)
        self._bar.refresh()


class _Bar(rich.progress.Progress):
    def get_renderables(self) -> Iterable[rich.console.RenderableType]:
        yield from super().get_renderables()
        # The cursor stays on an empty line: what the terminal echoes, and what a shell says after
        # the process was killed, begins a line of its own.
        yield ""


class _Console(rich.console.Console):
    def show_cursor(self, show: bool = True) -> bool:
        return False  # it is never hidden


def _can_draw() -> bool:
    """Whether standard output is a terminal where nothing is drawn, and this process talks.

    What a notebook runs with "!" has a terminal too, but one that cannot go back a line.
    """
    knows_how = os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
    in_notebook = "JPY_PARENT_PID" in os.environ
    free = sys.stdout.isatty() and not isinstance(sys.stdout, Above)
    return distributed.is_main() and free and knows_how and not in_notebook
