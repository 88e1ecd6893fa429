"""What a config runs: a teacher, then students of half as many steps each. Pure functions.

A match stage may stand between them: another network that learns what the teacher predicts.
"""

import dataclasses

from ml_collections import ConfigDict

from diffusion_distill.errors import UserError

MOST_KEPT = 0.1  # of its first weights, in a stage's average, before a person is told


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    name: str  # its folder in the workdir: "teacher", "match", "student_0016"
    # sampling steps it is made for; of a stage that knows all times, where the chain starts
    num_steps: int
    # name of the stage whose averaged weights it starts and learns from; None for the teacher
    teacher: str | None
    updates: int  # how many it makes; 0 where it is given
    # see `learning_rate` in training/optimizer.py
    learning_rate: float
    warmup: int
    lr_schedule: str
    # as in the config
    weight_decay: float
    ema_decay: float
    dropout: float
    # of its teacher's flow, for a student: one of TARGETS; or "tract", for `tract_target`
    solver: str = "ddim"
    divides_by: int = 2  # its teacher's steps over its own, for a student

    @property
    def has_teacher(self) -> bool:
        """Whether it learns from another stage."""
        return self.teacher is not None

    @property
    def is_match(self) -> bool:
        """Whether it learns what its teacher predicts, at the same times: nothing is halved."""
        return self.name == "match"

    @property
    def knows_all_times(self) -> bool:
        """Whether it is trained in continuous time, and so samples in any number of steps."""
        return not self.has_teacher or self.is_match

    @property
    def kind(self) -> str:
        """What shares a compiled step: "teacher", "match", "student", or that and its solver."""
        if self.knows_all_times:
            return self.name
        return "student" if self.solver == "ddim" else f"student, {self.solver}"

    @property
    def is_given(self) -> bool:
        """Whether it is a teacher that was trained elsewhere, and is copied."""
        return self.updates == 0

    def heading(self, number: int, count: int) -> str:
        """What is said as it begins, the `number`-th of so many.

        With a warning where more than MOST_KEPT of its averaged weights, which are what is used of
        it, are those that it begins with.
        """
        text = f"{self.name}: stage {number} of {count}, {self.updates} updates"
        kept = self.ema_decay**self.updates
        if self.is_given or kept < MOST_KEPT:
            return text
        average = f"its average, of ema_decay {self.ema_decay:g}, ends with {kept:.0%} of its start"
        return f"{text}; {average}"

    @property
    def rng_id(self) -> int:
        """The number that tells this stage's randomness from the others': 0 for the teacher."""
        return {"teacher": 0, "match": 3}.get(self.kind, self.num_steps)  # 3 is no power of 2


def plan(config: ConfigDict) -> list[Stage]:
    """The stages of a config in the order they run: a function of the config alone.

    A round from 2N to N steps makes `distill.updates` updates, and the rounds to 2 and to 1
    `distill.updates_last_rounds` (the paper's schedule). Where `distill.teacher` is given, the
    teacher makes none. Where `match.updates` is not 0, the first round starts from that stage.
    """
    teacher = Stage(
        name="teacher",
        num_steps=config.distill.start_steps,
        teacher=None,
        updates=0 if config.distill.teacher else config.teacher.updates,
        **_schedule(config.teacher),
    )
    stages = [teacher]
    if config.match.updates:
        match = dict(num_steps=config.distill.start_steps, teacher="teacher")
        updates = config.match.updates
        stages.append(Stage("match", **match, updates=updates, **_schedule(config.match)))
    num_steps, end_steps = config.distill.start_steps, config.distill.end_steps
    while num_steps > end_steps:
        first = num_steps == config.distill.start_steps
        divides_by = min(config.distill.divide_by, num_steps // end_steps)
        num_steps //= divides_by
        # A single step is a last one, which for Heun's method is DDIM's: nothing to learn.
        solver = config.distill.first_round_solver if first and num_steps > 1 else "ddim"
        last = num_steps <= 2
        stages.append(
            Stage(
                name=f"student_{num_steps:04d}",
                num_steps=num_steps,
                teacher=stages[-1].name,
                updates=config.distill.updates_last_rounds if last else config.distill.updates,
                **_schedule(config.distill),
                solver="tract" if config.distill.divide_by > 2 else solver,
                divides_by=divides_by,
            )
        )
    return stages


def student_config(config: ConfigDict) -> ConfigDict:
    """The config of the network that all stages but the teacher train.

    It is told the guidance that `match.guidance` draws; nobody learns without labels any more.
    """
    config = config.copy_and_resolve_references()
    config.model.guidance = config.match.guidance or config.model.guidance
    config.teacher.label_dropout = 0.0
    return config


def started_from(
    config: ConfigDict, teacher: str, fixed_steps: int | None, network: dict | None = None
) -> ConfigDict:
    """The config, a copy, of a run whose chain starts from a teacher that was trained elsewhere.

    Args:
        teacher: where its weights are, for `distill.teacher`.
        fixed_steps: the only number of sampling steps that it takes, of DDIM, whatever
            `distill.start_steps` and `distill.first_round_solver` say; None for a teacher that
            takes any.
        network: the teacher's fields, where it is another network than the run trains: the chain's
            schedule is cut to its, outside of which it was never trained.

    Raises:
        UserError: no chain of halvings starts at fixed_steps, or ends at `distill.end_steps`.
    """
    config = config.copy_and_resolve_references()
    config.distill.teacher = teacher
    if network is not None:
        low, high = network["diffusion"]["logsnr_min"], network["diffusion"]["logsnr_max"]
        config.diffusion.logsnr_min = max(config.diffusion.logsnr_min, low)
        config.diffusion.logsnr_max = min(config.diffusion.logsnr_max, high)
    if fixed_steps is not None:
        if fixed_steps & (fixed_steps - 1):
            raise UserError(
                f"{teacher} is made for {fixed_steps} steps; to distil from it they must be a "
                "power of 2"
            )
        if config.distill.end_steps > fixed_steps:
            raise UserError(
                f"config.distill.end_steps is {config.distill.end_steps}; {teacher} is made for "
                f"{fixed_steps} steps, and it must be at most those"
            )
        config.distill.start_steps = fixed_steps
        config.distill.first_round_solver = "ddim"  # it knows the times of its own steps alone
    return config


def _schedule(fields: ConfigDict) -> dict:
    names = "learning_rate warmup lr_schedule weight_decay ema_decay dropout".split()
    return {name: fields[name] for name in names}
