"""How long a run still takes, by how long what is done took."""

from collections.abc import Iterable, Mapping

from diffusion_distill.stages import Stage

# Passes forward through a network that an update costs, where one backward costs two of them:
# a teacher's 1 + 2, a student's besides two of its teacher.
TEACHER_COST, STUDENT_COST = 3, 5


class Outlook:
    """Work of a few kinds, done in order; each kind at the speed that was last seen of it."""

    def __init__(self, work: Mapping[str, tuple[str, float]], seconds: Mapping[str, float]):
        """`work` is name -> (kind, amount), in order; `seconds`, by kind, what a unit takes."""
        self._kinds = {name: kind for name, (kind, _) in work.items()}
        self._amounts = {name: amount for name, (_, amount) in work.items()}
        self._left, self._seconds = dict(self._amounts), dict(seconds)

    def seconds_left(self, name: str, done: float, rate: float) -> float | None:
        """Seconds until all is done; None where too little was timed to say.

        `name` is being done, and what is before it is done; other names say nothing. The part
        `done` of it is done, 0 to 1, and `rate` of it in a second; 0 where that is not known.
        """
        if name in self._left:
            names = list(self._left)
            self._left |= dict.fromkeys(names[: names.index(name)], 0.0)
            self._left[name] = self._amounts[name] * (1 - done)
            if rate:
                self._seconds[self._kinds[name]] = 1 / (rate * self._amounts[name])
        left = {name: amount for name, amount in self._left.items() if amount}
        if any(self._kinds[name] not in self._seconds for name in left):
            return None
        return sum(amount * self._seconds[self._kinds[name]] for name, amount in left.items())


def outlook(
    stages: Iterable[Stage], parts: Mapping[str, Mapping[str, int]], rows: Iterable[dict] = ()
) -> Outlook:
    """That of a run.

    A student's update is reckoned as 5/3 of a teacher's until one was timed. Measuring takes no
    time until some of it was timed; then it goes by the images and steps in it.

    Args:
        parts: stage -> `Subject.work` of metrics/stage_row.py.
        rows: of results.jsonl: stages that are finished.
    """
    work, seconds = {}, {"measuring": 0.0}
    finished = {row["stage"]: row["seconds"] for row in rows}
    for stage in stages:
        amount = stage.updates * (STUDENT_COST if stage.has_teacher else TEACHER_COST)
        if stage.name not in finished:
            work[stage.name] = "training", amount
            for part, passes in parts[stage.name].items():
                work[f"{stage.name}: {part}"] = "measuring", passes
        elif amount and finished[stage.name]:
            seconds["training"] = finished[stage.name] / amount
    return Outlook(work, seconds)
