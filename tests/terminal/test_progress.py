"""The live display of a run, seen on a pseudo-terminal; and how long a run is said to take."""

import os
import signal
import subprocess
import time
from contextlib import redirect_stdout

import pytest

from configs.digits_distill import get_config
from diffusion_distill.metrics.measure import Progress as MeasuringProgress
from diffusion_distill.metrics.measure_stage import measuring_parts
from diffusion_distill.stages import plan
from diffusion_distill.terminal import console, live, progress
from diffusion_distill.terminal.progress import Outlook, RunProgress
from diffusion_distill.training.logs import Progress
from tests.devices.test_processes import COMMAND as OF_TWO
from tests.devices.test_processes import ROOT
from tests.pseudo_terminal import Terminal

# The same small run as a process of its own: a teacher of 100 updates, and a student of one step.
COMMAND = [word for word in OF_TWO if not word.startswith("--num_processes")]


@pytest.fixture
def terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(live, "EVERY", 0.0)
    yield terminal
    terminal.close()


def stages_and_parts():
    config = get_config()  # 32 -> 16 -> 8 -> 4 -> 2 -> 1, a teacher of 1200 updates
    config.eval.baselines = ("ddim", "ancestral")
    stages = plan(config)
    steps = [stage.num_steps for stage in stages]
    return stages, {s.name: measuring_parts(s, steps, config.eval) for s in stages}


def test_a_run_is_shown_from_its_first_stage_to_its_last(terminal):
    with redirect_stdout(terminal.stdout), RunProgress(*stages_and_parts()):
        shown = Progress("teacher", 0, 1200, 32, every_seconds=60.0)
        assert "\n".join(terminal.read()).startswith("teacher, stage 1 of 6, compiling\n")
        for step in range(1, 61):
            shown.update(step, 0.5)
            terminal.read(0.0)  # or it is full, and the next write waits
        title, bar, facts = terminal.read()
        assert title == "teacher, stage 1 of 6, training"
        assert bar.endswith(" step 60 of 1,200")
        assert "loss 0.5000, " in facts
        assert " images/s, stage ~" in facts
        assert facts.endswith(" left")
        progress.current().measuring("student_0001")
        assert terminal.read()[0] == "student_0001, stage 6 of 6, measuring, compiling"
        measuring = MeasuringProgress("student_0001: ddim, 1 steps", 60.0, lambda: None)
        measuring(256, 1000)
        measuring(512, 1000)
        title, bar = terminal.read()[:2]
        assert title == "student_0001, stage 6 of 6, measuring ddim, 1 steps"
        assert bar.endswith(" 512 of 1,000 images")
        measuring(1000, 1000)
    assert terminal.read() == [""]
    assert not terminal.screen.cursor.hidden
    assert (terminal.screen.cursor.x, terminal.screen.cursor.y) == (0, 0)


def frame(step):
    title = ["student_0016", "stage 12 of 14", "training"]
    facts = ["loss 0.0312", "12,345 images/s", "stage ~12m05s left", "run ~107h02m left"]
    return live.Frame(title, step, 1000, f"step {step} of 1,000", facts)


@pytest.mark.parametrize("columns", [40, 80, 160])
@pytest.mark.parametrize("color", [True, False])
def test_every_width_shows_all_of_it_and_keeps_each_line_said(
    terminal, monkeypatch, columns, color
):
    if not color:
        monkeypatch.setenv("NO_COLOR", "1")
    terminal.resize(columns, 24)
    said = [f"line {n} " + "abcdefghi " * n for n in range(30)]
    with redirect_stdout(terminal.stdout), live.Display() as display:
        for n, line in enumerate(said):
            display.draw(frame(n))
            console.say(line)
            terminal.read()
        lines = terminal.read()
        shown = [line for line in lines if "line " not in line and "abc" not in line][-4:]
        text = " ".join(shown)
        for piece in (*frame(0).title, *frame(0).facts, "step 29 of 1,000"):
            assert piece in text
        assert display._console.no_color is not color
    # The terminal has wrapped what is longer than it: nothing is lost or added.
    height = [-(-len(line.rstrip()) // columns) for line in said]
    lines = terminal.read()
    assert len(lines) == sum(height)
    joined = "".join(line.ljust(columns) for line in lines)
    for line in said:
        assert line.rstrip() in joined
    assert (b"\x1b[38;5" in terminal.raw) is color
    assert b"\x1b[?25l" not in terminal.raw.split(b"\x1b[?25h")[-1]


def test_a_terminal_that_changes_its_size_is_followed(terminal):
    terminal.resize(40, 24)
    with redirect_stdout(terminal.stdout), live.Display() as display:
        for columns, rows, lines in ((40, 24, 4), (160, 24, 3), (160, 2, 2)):
            terminal.resize(columns, rows)
            display.draw(frame(1))
            seen = terminal.read()
            assert len(seen) == lines
            assert seen[0] == "student_0016, stage 12 of 14, training"


def test_what_others_print_goes_above_the_frame(terminal):
    with redirect_stdout(terminal.stdout), live.Display() as display:
        display.draw(frame(1))
        print("a warning of a library")
        lines = terminal.read()
    assert lines[0] == "a warning of a library"
    assert lines[1].startswith("student_0016")


def test_a_line_from_a_signal_handler_takes_the_place_of_the_frame_at_once(terminal):
    with redirect_stdout(terminal.stdout), live.Display() as display:
        display.draw(frame(1))
        console.say_in_handler("stopping")
        assert terminal.read() == ["stopping"]
        display.draw(frame(2))
        lines = terminal.read()
        assert lines[0] == "stopping"
        assert lines[2].endswith("step 2 of 1,000")
        assert len(lines) == 4
    assert terminal.read() == ["stopping"]


@pytest.mark.parametrize(
    ("name", "value"), [("TERM", "dumb"), ("TERM", ""), ("JPY_PARENT_PID", "1")]
)
def test_lines_where_a_terminal_cannot_go_back(terminal, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with redirect_stdout(terminal.stdout), RunProgress(*stages_and_parts()):
        shown = Progress("teacher", 0, 3, 32, every_seconds=0.0)
        for step in range(1, 4):
            shown.update(step, 0.5)
    assert [line[:19] for line in terminal.read()] == ["teacher: step 2 of ", "teacher: step 3 of "]
    assert b"\x1b" not in terminal.raw


def test_time_left_counts_a_students_update_as_five_thirds_of_a_teachers():
    stages, parts = stages_and_parts()
    outlook = Outlook(stages, parts)
    outlook.trained("teacher", 0)
    assert outlook.seconds_left() is None
    outlook.trained("teacher", 200, 0.3)
    assert outlook.seconds_left("teacher") == pytest.approx(1000 * 0.3)
    students = 3 * 200 + 2 * 300
    assert outlook.seconds_left() == pytest.approx(1000 * 0.3 + students * 0.5)
    outlook.trained("student_0016", 100, 0.2)  # measured is better than reckoned
    assert outlook.seconds_left() == pytest.approx((students - 100) * 0.2)


def test_measuring_counts_once_some_of_it_was_timed():
    stages, parts = stages_and_parts()
    assert parts["student_0016"] == {"ddim, 16 steps": 17 * 1000}
    # DDIM at the teacher's own steps is measured once, ancestral sampling at all six.
    assert len(parts["teacher"]) == 12
    outlook = Outlook(stages, parts)
    outlook.trained("teacher", 1200, 0.3)
    training = outlook.seconds_left()
    outlook.measuring("teacher")
    assert outlook.seconds_left("teacher") is None
    outlook.measured("teacher", "reference", 500, 1797, 90.0)
    outlook.measured("teacher", "ddim, 32 steps", 200, 1000, 100.0)
    assert outlook.seconds_left() == training
    outlook.measured("teacher", "ddim, 32 steps", 700, 1000, 116.5)  # 1 ms for each step of one
    steps = 2 * (33 + 17 + 9 + 5 + 3 + 2)
    assert outlook.seconds_left("teacher") == pytest.approx(steps - 0.7 * 33)
    students = 17 + 9 + 5 + 3 + 2
    assert outlook.seconds_left() == pytest.approx(training + steps - 0.7 * 33 + students)


def test_a_run_that_goes_on_knows_what_its_earlier_starts_took():
    stages, parts = stages_and_parts()
    rows = [{"stage": "teacher", "seconds": 120.0}, {"stage": "student_0016", "seconds": 40.0}]
    assert Outlook(stages, parts, rows).seconds_left() == pytest.approx((2 * 200 + 2 * 300) * 0.2)


def on_terminal(workdir, until, signum=None):
    """(exit status, terminal) of a real run on one, that gets a signal when `until` is shown."""
    terminal = Terminal(columns=80, rows=30)
    environment = os.environ | {"TERM": "xterm-256color"}
    command = [*COMMAND, f"--workdir={workdir}"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=terminal.theirs, stdout=terminal.theirs, stderr=terminal.theirs,
        env=environment,
    )  # fmt: skip
    end, seen = time.monotonic() + 300, set()
    while process.poll() is None and time.monotonic() < end:
        lines = terminal.read(0.1)
        seen.update(lines)
        if signum and any(until in line for line in lines):
            process.send_signal(signum)
            signum = None
    if process.poll() is None:
        process.kill()
    code = process.wait()
    seen.update(terminal.read())
    return code, terminal, seen


def test_a_real_run_on_a_terminal_stops_clean_and_goes_on_to_its_end(tmp_path):
    code, terminal, _ = on_terminal(tmp_path / "run", "stage 1 of 2, compiling", signal.SIGTERM)
    lines = terminal.lines()
    terminal.close()
    assert code == 128 + signal.SIGTERM, lines
    assert not terminal.screen.cursor.hidden
    assert terminal.screen.cursor.x == 0
    error = "error: stopped by signal 15; the same command goes on from here"
    assert lines[-2:] == ["stopping: what is trained is saved first", error]
    assert not any("images/s" in line for line in lines)  # of the display nothing is left

    code, terminal, seen = on_terminal(tmp_path / "run", "")
    lines = terminal.lines()
    terminal.close()
    assert code == 0, lines
    assert not terminal.screen.cursor.hidden
    for stage in ("teacher, stage 1 of 2", "student_0001, stage 2 of 2"):
        assert any(line.startswith(stage) for line in seen)
    assert any(line.endswith("step 0 of 6") for line in seen)
    assert not any("student_0001, stage" in line for line in lines)
    ending = "".join(lines[-3:]).replace(" ", "")  # on two lines where the path is long
    assert f"{tmp_path}/run:donein" in ending
    for name, updates in (("teacher", 100), ("student_0001", 6)):
        done = [n for n, x in enumerate(lines) if x.startswith(f"{name}: step {updates} of ")]
        measured = [n for n, x in enumerate(lines) if x.startswith(f"{name}: fd_pixels")]
        assert len(done) == len(measured) == 1
        assert done < measured
