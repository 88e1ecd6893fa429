"""How far work is: drawn on a terminal, here a pseudo-terminal; elsewhere said in lines."""

import os
import re
import signal
import sys
import threading
import time
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest

from diffusion_distill.terminal import console, progress
from diffusion_distill.terminal.progress import Progress
from tests.pseudo_terminal import Terminal


@pytest.fixture
def terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    yield terminal
    terminal.close()


@pytest.fixture
def clock(monkeypatch):
    """`clock.now` is what time.monotonic() says."""
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(progress, "time", clock)
    return clock


def run_left(label, done, rate):
    return 385020.0


def student(total=600):
    return Progress("student_0016", total, "step", 60.0, 32, run_left)


def test_training_is_drawn_from_its_start_to_its_end(terminal, clock):
    with redirect_stdout(terminal.stdout), student(4) as shown:
        shown.skip(1)
        (line,) = terminal.read()
        assert line.endswith("━ student_0016: step 1 of 4, starting, run ~106h57m left")
        shown.update(2, "loss 0.5000")
        (line,) = terminal.read()
        assert line.endswith("━ student_0016: step 2 of 4, loss 0.5000, run ~106h57m left")
        clock.now += 4
        shown.update(3, "loss 0.2500")
        line, rest = terminal.read()
        assert line == "━━━━━━━━━╺━━ student_0016: step 3 of 4, loss 0.2500, 8 images/s, 4s"
        assert rest == "             left, run ~106h57m left"
        # What a shell says after a kill would begin a line of its own.
        assert (terminal.screen.cursor.x, terminal.screen.cursor.y) == (0, 2)
        clock.now += 4
        shown.update(4, "loss 0.1250")
    line = "student_0016: step 4 of 4, loss 0.1250, 8 images/s, 0s left, run ~106h57m left"
    assert terminal.read() == [line]
    assert (terminal.screen.cursor.x, terminal.screen.cursor.y) == (0, 1)
    assert b"\x1b[?25l" not in terminal.raw  # the cursor is never hidden


@pytest.mark.parametrize("columns", [40, 80, 160])
@pytest.mark.parametrize("color", [True, False])
def test_every_width_shows_all_of_it_and_keeps_each_line_said(
    terminal, monkeypatch, columns, color
):
    if not color:
        monkeypatch.setenv("NO_COLOR", "1")
    terminal.resize(columns, 24)
    said = [f"line {n} " + "abcdefghi " * n for n in range(30)]
    with redirect_stdout(terminal.stdout), student() as shown:
        for n, line in enumerate(said):
            shown.update(n, "loss 0.0312")
            console.say(line)
            terminal.read(0.01)
        text = " ".join(" ".join(terminal.read()).split())
        sentence = (
            r"student_0016: step 29 of 600, loss 0.0312, [\d,]+ images/s, \d+s left, run ~106h"
        )
        assert re.search(f"(╸|╺|━) {sentence}57m left$", text)
    # The terminal has wrapped what is longer than it: nothing is lost or added.
    height = [-(-len(line.rstrip()) // columns) for line in said]
    lines = terminal.read()
    assert len(lines) == sum(height)
    joined = "".join(line.ljust(columns) for line in lines)
    for line in said:
        assert line.rstrip() in joined
    assert (b"\x1b[38;5" in terminal.raw) is color


def test_a_terminal_that_changes_its_size_is_followed(terminal):
    terminal.resize(40, 24)
    with redirect_stdout(terminal.stdout), student() as shown:
        for step, (columns, rows, lines) in enumerate([(40, 24, 3), (160, 24, 2), (40, 2, 2)], 1):
            terminal.resize(columns, rows)
            shown.update(step, "loss 0.5000")
            seen = terminal.read()
            assert len(seen) == lines
            assert "student_0016:" in seen[0]


def test_what_others_print_goes_above_the_drawing(terminal):
    with redirect_stdout(terminal.stdout), student() as shown:
        shown.update(1)
        print("a warning of a library")
        lines = terminal.read()
        assert sys.stdout is not terminal.stdout
    assert lines[0] == "a warning of a library"
    assert "student_0016: step 1 of 600" in lines[1]


def test_within_another_lines_are_said(terminal):
    with redirect_stdout(terminal.stdout), student() as shown, Progress("x", 2, "files") as inner:
        shown.update(1)
        inner.add(2)
        lines = terminal.read()
    assert [lines[0], len(lines)] == ["x: 2 of 2 files", 2]


def test_a_failure_leaves_the_terminal_as_it_was(terminal):
    with redirect_stdout(terminal.stdout), pytest.raises(ZeroDivisionError), student() as shown:
        shown.update(1 // 0)
    assert terminal.read() == [""]
    assert (terminal.screen.cursor.x, terminal.screen.cursor.y) == (0, 0)


def test_a_line_from_a_signal_handler_takes_the_place_of_the_drawing_at_once(terminal):
    with redirect_stdout(terminal.stdout), student() as shown:
        shown.update(1)
        console.say_in_handler("stopping")
        assert terminal.read() == ["stopping"]
        shown.update(2)
        lines = terminal.read()
        assert lines[0] == "stopping"
        assert "step 2 of 600" in lines[1]
    assert terminal.read() == ["stopping"]


def test_a_signal_in_the_middle_of_a_drawing(terminal):
    """Hundreds of them, at any moment: nothing fails, and no line is lost."""
    said = 0

    def handler(signum, frame):
        nonlocal said
        said += 1
        console.say_in_handler(f"stopping {said}")
        signal.setitimer(signal.ITIMER_REAL, 0.001)  # the next, but not in the middle of this one

    end = threading.Event()

    def read():
        while not end.is_set():
            terminal.read(0.01)

    reader = threading.Thread(target=read)
    reader.start()
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with redirect_stdout(terminal.stdout), student(10**6) as shown:
            signal.setitimer(signal.ITIMER_REAL, 0.001)
            step = 0
            while said < 200:
                step += 1
                shown.update(step)
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        end.set()
        reader.join()
    terminal.read()
    for n in range(1, said + 1):
        assert f"stopping {n}\n".encode() in terminal.raw.replace(b"\r", b"")


def test_a_terminal_that_is_closed_ends_nothing(terminal, clock):
    """As when its window is: each write fails from then on, and so does asking for its size."""
    with redirect_stdout(terminal.stdout), student(4) as shown:
        shown.update(1)
        os.close(terminal.fd)
        for done in (2, 3, 4):
            clock.now += 4
            shown.update(done)
            console.say("more")
            console.say_in_handler("stopping")
    terminal.fd = os.open(os.devnull, os.O_RDONLY)  # for the fixture to close


def test_a_pipe_that_nobody_reads_any_more_ends_nothing():
    theirs, ours = os.pipe()
    with open(ours, "w") as pipe, redirect_stdout(pipe):
        console.say("one")
        assert os.read(theirs, 100) == b"one\n"
        os.close(theirs)
        with student(2) as shown:
            for done in (1, 2):
                shown.update(done)
                console.say("more")
    # Nor does closing it, which Python does at its exit.


def test_a_full_disk_below_what_is_said_ends_nothing():
    with open("/dev/full", "w") as full, redirect_stdout(full):
        console.say("one")
        console.say("two")
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # there is room again


@pytest.mark.parametrize(
    ("name", "value"), [("TERM", "dumb"), ("TERM", ""), ("JPY_PARENT_PID", "1")]
)
def test_lines_where_a_terminal_cannot_go_back(terminal, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with redirect_stdout(terminal.stdout), Progress("teacher", 3, "step", 0.0, 32) as shown:
        for step in range(1, 4):
            shown.update(step, "loss 0.5000")
    assert [line[:19] for line in terminal.read()] == ["teacher: step 2 of ", "teacher: step 3 of "]
    assert b"\x1b" not in terminal.raw


def test_lines_come_when_they_are_due_and_say_all_of_it(capsys, clock):
    """An update of 16 images takes a second; the first, which was compiled, says no speed."""
    with Progress("teacher", 600, "step", 5.0, 16, lambda *of: sum(of[1:]) * 600) as shown:
        shown.skip(580)
        clock.now += 1000  # of compilation
        for step in range(581, 601):
            shown.update(step, "loss 0.5636")
            clock.now += 1
    assert capsys.readouterr().out.splitlines() == [
        f"teacher: step {step} of 600, loss 0.5636, 16 images/s, {600 - step}s left, "
        f"run ~{console.duration(step + 1)} left"
        for step in (586, 591, 596, 600)
    ]


def test_lines_of_measuring_and_of_data(capsys, clock):
    with Progress("teacher: ddim, 4 steps", 2000, "images", 0.0, images=1) as shown:
        for done in (500, 1000, 2000):
            shown.update(done, say_last=False)
            clock.now += 0.25
    with Progress("prepare", 12000, "images", 0.0) as shown:
        shown.skip(6000)  # were there already
        for _ in range(3):
            shown.add(2000)
            clock.now += 1
    with Progress("one", 1, "files") as shown:
        shown.add(1)
    assert capsys.readouterr().out.splitlines() == [
        "teacher: ddim, 4 steps: 1,000 of 2,000 images, 2,000 images/s, 0s left",
        "prepare: 10,000 of 12,000 images, 2,000 a second, 1s left",
        "prepare: 12,000 of 12,000 images, 2,000 a second, 0s left",
        "one: 1 of 1 files",
    ]


def test_a_thousand_updates_a_second_cost_next_to_nothing(terminal, monkeypatch):
    monkeypatch.undo()  # of EVERY = 0
    monkeypatch.setenv("TERM", "xterm-256color")
    threads, count = threading.active_count(), 10_000
    with redirect_stdout(terminal.stdout), student(count) as shown:
        began, cpu = time.monotonic(), time.process_time()
        for step in range(1, count):
            shown.update(step, "loss 0.5000")
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        assert threading.active_count() == threads
    assert cpu / count < 1e-4  # of the millisecond that each has; some microseconds, measured
    terminal.read()
    assert terminal.raw.count(b"student_0016: ") <= 3 + seconds / progress.EVERY


def test_durations():
    durations = [console.duration(s) for s in (0.4, 59.6, 125, 7500)]
    assert durations == ["0s", "1m00s", "2m05s", "2h05m"]
