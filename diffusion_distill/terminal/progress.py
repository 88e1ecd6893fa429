"""How far a run is, and how long it still takes: for its lines of progress and its display."""

import contextlib
import time
from collections.abc import Iterable, Mapping

from diffusion_distill.stages import Stage
from diffusion_distill.terminal import live
from diffusion_distill.terminal.console import duration

# Passes forward through a network that an update costs, where one backward costs two of them:
# a teacher's 1 + 2, a student's besides two of its teacher.
TEACHER_COST, STUDENT_COST = 3, 5


class Outlook:
    """Estimates the seconds that stages still take from those that were measured.

    An update of a student counts as 5/3 of a teacher's until one was measured. Measuring counts as
    soon as some of it was timed: what the next takes goes by the images and steps in it.
    """

    def __init__(
        self,
        stages: Iterable[Stage],
        parts: Mapping[str, Mapping[str, int]],
        rows: Iterable[dict] = (),
    ):
        """All of a run.

        Args:
            stages: of the run, in order.
            parts: of a stage's name: the parts of measuring it in order, and the work in each, in
                any unit; see `measuring_parts` in measure_stage.py.
            rows: of results.jsonl: stages that are finished.
        """
        self._stages = {stage.name: stage for stage in stages}
        self._parts = parts
        self._updates = {stage.name: stage.updates for stage in self._stages.values()}  # left
        self._work = {name: sum(parts.get(name, {}).values()) for name in self._stages}  # left
        self._per_update: dict[bool, float] = {}  # seconds, by whether it is a student's
        self._per_work: float | None = None  # seconds
        self._timed_from: tuple[float, float] | None = None  # (work done, time)
        for row in rows:
            if (stage := self._stages.get(row["stage"])) is not None:
                self._updates[stage.name] = self._work[stage.name] = 0
                if stage.updates and row["seconds"]:
                    self._per_update[stage.teacher is not None] = row["seconds"] / stage.updates

    def trained(self, stage: str, step: int, seconds_per_update: float | None = None) -> None:
        """Training of a stage stands at this step; of those before it nothing is left."""
        self._finish_before(stage)
        self._updates[stage] = self._stages[stage].updates - step
        if seconds_per_update:
            self._per_update[self._stages[stage].teacher is not None] = seconds_per_update

    def measuring(self, stage: str) -> None:
        """A stage is trained, and measuring it begins."""
        self.trained(stage, self._stages[stage].updates)
        self._timed_from = None

    def measured(self, stage: str, part: str, done: int, count: int, now: float) -> None:
        """So many images of a part are measured at this time, in seconds of any clock.

        The first call for a stage starts its clock: what was compiled before does not come again.
        """
        parts = self._parts[stage]
        if part not in parts:
            return
        names = list(parts)
        position = sum(parts[name] for name in names[: names.index(part)])
        position += parts[part] * done / count
        self._work[stage] = sum(parts.values()) - position
        if self._timed_from is None:
            self._timed_from = position, now
        elif position > self._timed_from[0]:
            self._per_work = (now - self._timed_from[1]) / (position - self._timed_from[0])

    def seconds_left(self, stage: str | None = None) -> float | None:
        """Of a stage, or of the run; None where too little was timed to say."""
        names = list(self._stages) if stage is None else [stage]
        if not any(self._updates[name] for name in names) and self._per_work is None:
            return None  # measuring is all that is left, and nobody knows how long it takes
        total = 0.0
        for name in names:
            if self._updates[name]:
                if (each := self._seconds_per_update(self._stages[name])) is None:
                    return None
                total += self._updates[name] * each
            total += self._work[name] * (self._per_work or 0.0)
        return total

    def _seconds_per_update(self, stage: Stage) -> float | None:
        is_student = stage.teacher is not None
        if is_student in self._per_update or not self._per_update:
            return self._per_update.get(is_student)
        ratio = STUDENT_COST / TEACHER_COST
        return self._per_update[not is_student] * (ratio if is_student else 1 / ratio)

    def _finish_before(self, stage: str) -> None:
        for name in self._stages:
            if name == stage:
                return
            self._updates[name] = self._work[name] = 0


class RunProgress:
    """Where a run stands; for the time of a `with` it is the `current` one.

    On a terminal it is shown by a live display, elsewhere by whoever says lines of progress. One
    without stages knows nothing and shows nothing.
    """

    def __init__(
        self,
        stages: Iterable[Stage] = (),
        parts: Mapping[str, Mapping[str, int]] | None = None,
        rows: Iterable[dict] = (),
    ):
        """See `Outlook` for the arguments."""
        self._stages = {stage.name: stage for stage in stages}
        self._outlook = Outlook(self._stages.values(), parts or {}, rows)
        self._stage: str | None = None  # that is trained or measured
        self._display: live.Display | None = None

    def __enter__(self) -> "RunProgress":
        global _current
        with contextlib.ExitStack() as stack:
            if live.can_draw():
                self._display = stack.enter_context(live.Display())
            self._open = stack.pop_all()
        _current = self
        return self

    def __exit__(self, *exception) -> None:
        global _current
        _current = _NONE
        self._display = None
        self._open.close()

    @property
    def is_live(self) -> bool:
        """Whether a display shows what lines of progress would say."""
        return self._display is not None

    def run_left(self) -> str:
        """ ", run ~3m05s left" for the end of a line; "" where that is not known."""
        seconds = self._outlook.seconds_left()
        return "" if seconds is None else f", run ~{duration(seconds)} left"

    def compiling(self, stage: str, start: int) -> None:
        """A stage is about to be trained from this step on."""
        if stage not in self._stages:
            return
        self._stage = stage
        self._outlook.trained(stage, start)
        self._draw_training("compiling", start, [])

    def trained(
        self, step: int, loss: float, images_per_second: float, seconds_per_update: float
    ) -> None:
        """An update is done; the rates are 0 as long as they are not known."""
        if self._stage is None:
            return
        self._outlook.trained(self._stage, step, seconds_per_update)
        if self._display is not None and self._display.is_due():
            facts = [f"loss {loss:.4f}", *_images(images_per_second)]
            self._draw_training("training", step, facts)

    def measuring(self, stage: str) -> None:
        """A stage is trained, and about to be measured."""
        if stage not in self._stages:
            return
        self._stage = stage
        self._outlook.measuring(stage)
        self._draw("measuring, compiling", 0, 1, "0 images", [])

    def measuring_part(self, label: str) -> None:
        """The first images of a part are awaited."""
        if self._stage is not None:
            self._draw(f"measuring {self._part(label)}", 0, 1, "0 images", [])

    def measured(self, label: str, done: int, count: int, images_per_second: float) -> None:
        """So many images of this part of measuring are done; a rate of 0 is not known."""
        if self._stage is None:
            return
        part = self._part(label)
        self._outlook.measured(self._stage, part, done, count, time.monotonic())
        if self._display is not None and (self._display.is_due() or done == count):
            text = f"{done:,} of {count:,} images"
            self._draw(f"measuring {part}", done, count, text, _images(images_per_second))

    def _part(self, label: str) -> str:
        return label.removeprefix(f"{self._stage}: ")

    def _draw_training(self, what: str, step: int, facts: list[str]) -> None:
        updates = self._stages[self._stage].updates
        self._draw(what, step, updates, f"step {step:,} of {updates:,}", facts)

    def _draw(self, what: str, done: int, total: int, count: str, facts: list[str]) -> None:
        if self._display is None:
            return
        number = list(self._stages).index(self._stage) + 1
        title = [self._stage, f"stage {number} of {len(self._stages)}", what]
        left = {"stage": self._outlook.seconds_left(self._stage)}
        left["run"] = self._outlook.seconds_left()
        facts = [
            *facts,
            *(f"{name} ~{duration(seconds)} left" for name, seconds in left.items() if seconds),
        ]
        self._display.draw(live.Frame(title, done, total, count, facts))


def _images(per_second: float) -> list[str]:
    return [f"{per_second:,.0f} images/s"] if per_second else []


_NONE = RunProgress()
_current = _NONE


def current() -> RunProgress:
    """That of the run that goes on in this process; where there is none, one without stages."""
    return _current
