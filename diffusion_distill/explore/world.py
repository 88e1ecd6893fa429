"""What the page can ask of a run: samples, few steps side by side, a walk between two noises.

Every picture is made of batches of one size, so that one compilation serves all stages, numbers of
steps and pictures, and so that memory does not depend on what is asked for. What takes too long on
this machine is refused: how long it takes is measured.
"""

import dataclasses
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from diffusion_distill.config import to_dict
from diffusion_distill.data.batches import batches_of, to_uint8
from diffusion_distill.devices import compiler
from diffusion_distill.devices.distributed import fetch
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.diffusion.samplers import image_keys, image_noise
from diffusion_distill.errors import UserError
from diffusion_distill.generate import Sampler, checked_guidance, make_sample_program
from diffusion_distill.runs.network import from_stage
from diffusion_distill.runs.workdir import Workdir
from diffusion_distill.stages import Stage, plan

BATCH = 8  # images of one batch, rounded up to the devices; and those side by side
COMPARED = (1, 2, 4, 8)  # steps side by side
KEPT = 1 + len(COMPARED)  # networks whose weights stay loaded: all that are side by side
FRAMES = 16  # of a walk
MAX_IMAGES = 64  # of one request: more would not be looked at
MAX_SECONDS = 60.0  # of one request, by what one step of a batch took last


@dataclasses.dataclass(frozen=True)
class Picture:
    """What one network drew."""

    stage: str  # its name
    num_steps: int  # sampling steps
    images: np.ndarray  # uint8 [N, H, W, C]
    seconds: float  # that sampling took, without loading weights or compiling


@dataclasses.dataclass(frozen=True)
class Column:
    """The same noise in one number of steps."""

    num_steps: int
    student: Picture | None  # by the student that is made for them; None where the run has none
    teacher: Picture | None  # by the undistilled teacher with DDIM; None where it cannot


class World:
    """A run's finished stages, and what they draw. For one request at a time.

    What cannot be drawn, is out of range or would take too long is a UserError, and a damaged
    checkpoint a CheckpointError.
    """

    def __init__(self, path: str | Path):
        """Reads what there is; loads and compiles nothing."""
        self.run = Workdir.open(path)
        self.run.finished_stage()
        self._mesh = make_mesh()
        self.num_classes = self.run.num_classes
        self._programs = {}  # by a network's config, and whether it is asked twice
        self._networks = OrderedDict()  # by stage, the one used last at the end
        self._warm = set()  # (stage, whether it is asked twice) of what has drawn before
        self._seconds = None  # of one step of one batch; None before the sampler was compiled

    def stages(self) -> list[Stage]:
        """The stages that are finished by now, in the order they ran."""
        return [stage for stage in plan(self.run.config) if self.run.is_finished(stage)]

    def knows_guidance(self) -> bool:
        """Whether images of the run can be guided."""
        configs = [self.run.network_config(stage) for stage in self.stages()]
        return any(config.model.guidance or config.teacher.label_dropout for config in configs)

    def announcement(self, names: Sequence[str]) -> str:
        """What must be done before these stages can draw, in words; "" for nothing."""
        new = [name for name in names if name not in self._networks]
        parts = [f"loading the weights of {', '.join(new)}"] if new else []
        if self._seconds is None:
            parts.append(
                "compiling the sampler, once for all stages and numbers of steps (seconds for a "
                "small network, a minute or more for a large one)"
            )
        return " and ".join(parts)

    def sampler(self, name: str, num_steps: int, guidance: float | None = None) -> Sampler:
        """The sampler of a finished stage, with its weights loaded and its program compiled.

        `guidance` is w; None for the least that the stage knows.
        """
        stage = self.run.finished_stage(name=name)
        fixed = self.run.fixed_steps(stage)
        if num_steps < 1 or fixed not in (None, num_steps):
            accepted = f"{fixed}, which it is made for" if fixed else "at least 1"
            raise UserError(f"steps is {num_steps}; for {name} it must be {accepted}")
        if name not in self._networks:
            while len(self._networks) >= KEPT:
                self._networks.popitem(last=False)
            self._networks[name] = from_stage(self.run, stage, self._mesh)
        self._networks.move_to_end(name)
        network = self._networks[name]
        guidance = checked_guidance(guidance, network.guidance)
        twice = network.is_asked_twice(guidance)
        key = json.dumps(to_dict(network.config), sort_keys=True), twice
        if key not in self._programs:
            config = network.config.copy_and_resolve_references()
            config.runtime.sampler_batch_size = BATCH
            shape, classes = network.image_shape, network.num_classes
            self._programs[key] = make_sample_program(
                config, shape, classes, "ddim", self._mesh, twice
            )
        program = self._programs[key]
        if (name, twice) not in self._warm:
            one_step = Sampler(program, network.params, 1, guidance)
            for _ in range(2):  # the first call compiles, or is the first that uses these weights
                self._timed(lambda: one_step(num_images=BATCH), 1)
            self._warm.add((name, twice))
        return Sampler(program, network.params, num_steps, guidance)

    def guidance(self, text: str) -> float | None:
        """The w that was typed; None for "", which stands for the least that a stage knows."""
        if not text.strip():
            return None
        try:
            return float(text)
        except ValueError:
            shown = text if len(text) <= 40 else text[:40] + "..."
            raise UserError(f"guidance is {shown!r}; it must be a number") from None

    def label(self, text: str) -> int | None:
        """The label that was typed; None for "", which stands for all in turn."""
        if not text.strip():
            return None
        if not self.num_classes:
            raise UserError("a label was given, but this network was trained without")
        return whole_number("label", text, 0, self.num_classes - 1)

    def samples(
        self,
        name: str,
        num_steps: int,
        seed: int,
        label: int | None,
        count: int,
        guidance: float | None = None,
    ) -> Iterator[Picture]:
        """Images 0 to count - 1 of a seed, those of load_sampler; more of them batch by batch.

        The label is of all images; None for all labels that the network knows, in turn.
        """
        if not 1 <= count <= MAX_IMAGES:
            raise UserError(f"images is {count}; it must be from 1 to {MAX_IMAGES}")
        sampler = self.sampler(name, num_steps, guidance)
        labels = sampler.checked_labels(seed, count, label)
        size = sampler.batch_size(BATCH)
        batches = list(batches_of(count, size))
        self._check_time(num_steps * len(batches), f"{count} images in {num_steps} steps")
        images, seconds = np.empty((0, *sampler.image_shape), np.uint8), 0.0
        for indices in batches:

            def batch(indices=indices):
                return fetch(sampler.on_devices(seed, indices, labels))

            more, took = self._timed(batch, num_steps)
            images, seconds = np.concatenate([images, more])[:count], seconds + took
            yield Picture(name, num_steps, images, seconds)

    def compared_names(self) -> list[str]:
        """The stages that draw what is side by side."""
        return list(dict.fromkeys(n for names in self._compared().values() for n in names if n))

    def _compared(self) -> dict[int, list[str | None]]:
        """By the steps side by side, whom they are drawn by: [a student, the teacher], or None."""
        stages = self.stages()
        students = {s.num_steps: s.name for s in stages if not s.knows_all_times}
        teachers = [s for s in stages if not s.has_teacher]
        drawn = {}
        for steps in COMPARED:
            able = [t.name if self.run.fixed_steps(t) in (None, steps) else None for t in teachers]
            drawn[steps] = [students.get(steps), *able]
        return drawn

    def compare(
        self, seed: int, label: int | None, guidance: float | None = None
    ) -> Iterator[tuple[Column, ...]]:
        """Images 0 to BATCH - 1 of a seed in few steps; more of the columns one by one."""
        columns = self._compared()
        drawn = [(name, n) for n, names in columns.items() for name in names if name]
        for name, num_steps in drawn:
            self.sampler(name, num_steps, guidance)
        self._check_time(sum(n for _, n in drawn), f"{len(drawn)} pictures side by side")

        def picture(name, n):
            return list(self.samples(name, n, seed, label, BATCH, guidance))[-1]

        done = ()
        for n, names in columns.items():
            done = (*done, Column(n, *(x and picture(x, n) for x in names)))
            yield done

    @compiler.own_settings()
    def walk(
        self,
        name: str,
        num_steps: int,
        seeds: tuple[int, int],
        label: int | None,
        guidance: float | None = None,
    ) -> Picture:
        """FRAMES images on the way from image 0 of one seed to image 0 of another.

        All have one label, that of image 0 where none is given. See `slerp` for the way.
        """
        sampler, ends = self.sampler(name, num_steps, guidance), []
        for seed in seeds:
            sampler.checked_labels(seed, 1, label)
            noise = image_noise(image_keys(seed, np.arange(1)), 0, sampler.image_shape)
            ends.append(np.asarray(noise)[0])
        batches = -(-FRAMES // sampler.batch_size(BATCH))
        self._check_time(num_steps * batches, f"{FRAMES} images in {num_steps} steps")
        z = slerp(*ends, np.linspace(0.0, 1.0, FRAMES))
        labels = 0 if label is None and self.num_classes else label
        x, seconds = self._timed(lambda: sampler.from_noise(z, labels), num_steps * batches)
        return Picture(name, num_steps, np.asarray(to_uint8(x)), seconds)

    def _timed(self, draw: Callable[[], np.ndarray], steps: int) -> tuple[np.ndarray, float]:
        """What it draws, in so many steps of a batch, and the seconds that it took."""
        began = time.perf_counter()
        images = draw()
        seconds = time.perf_counter() - began
        self._seconds = seconds / steps
        return images, seconds

    def _check_time(self, steps: int, what: str) -> None:
        """Raises UserError where so many steps of a batch would take longer than MAX_SECONDS."""
        seconds = steps * self._seconds
        if seconds > MAX_SECONDS:
            raise UserError(
                f"{what} would take about {seconds:,.0f} s here, where one step of {BATCH} images "
                f"takes {self._seconds:.2g} s; the limit is {MAX_SECONDS:.0f} s, so ask for fewer "
                "images or steps"
            )


def whole_number(name: str, text: str, low: int, high: int) -> int:
    """The number that was typed; UserError where it is none, or out of range."""
    try:
        number = int(text)
    except ValueError:
        number = None
    if number is None or not low <= number <= high:
        shown = text if len(text) <= 40 else text[:40] + "..."  # so much of what was typed
        raise UserError(f"{name} is {shown!r}; it must be a whole number from {low} to {high}")
    return number


def slerp(start: np.ndarray, end: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spherical interpolation between two noises [...]: [N, ...], from weight 0 to weight 1.

        z_w = sin((1 - w) a) / sin(a) z_0 + sin(w a) / sin(a) z_1,    a the angle between them

    Why not a straight line: standard normal noise of d values lies close to a sphere of radius
    sqrt(d), and two of them stand nearly at right angles. Half way on the line between them the
    radius is only sqrt(d / 2): noise of half the variance, which the network never saw at t = 1 and
    turns into flat images. On the arc every point has the radius, and so the statistics, of noise.

    Where both have one direction there is no arc, and the line is it. Weights are [N] in 0 to 1.
    """
    flat_start, flat_end = start.ravel().astype(np.float64), end.ravel().astype(np.float64)
    lengths = np.linalg.norm(flat_start) * np.linalg.norm(flat_end)
    angle = np.arccos(np.clip(flat_start @ flat_end / lengths, -1.0, 1.0))
    weights = np.asarray(weights, np.float64)[:, None]
    if np.sin(angle) < 1e-6:
        points = (1.0 - weights) * flat_start + weights * flat_end
    else:
        points = np.sin((1.0 - weights) * angle) * flat_start + np.sin(weights * angle) * flat_end
        points /= np.sin(angle)
    return points.reshape(-1, *start.shape).astype(np.float32)
