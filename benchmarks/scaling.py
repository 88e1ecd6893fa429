"""How time and memory grow with batch, width, image size, length of the chain, and devices.

    python -m benchmarks.scaling --config=configs/cifar10_distill.py:tiny

One field of the config is changed at a time, the others stay. Images are made up and weights
random. "teacher" and "student" are the median time of an update, "memory" what the student's
program holds, arguments and temporaries, on each device, by the compiler's count. Of a chain it is
the seconds of a round of --updates, its start from the teacher included, and how often the update
was compiled for all rounds: once, however many they are. On a CPU several devices are simulated,
and share its cores: what a split costs shows there, not what it gains.
"""

import time

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from benchmarks import measuring
from benchmarks.workload import Workload
from diffusion_distill.devices.sharding import make_mesh, place, replicated
from diffusion_distill.terminal import cli
from diffusion_distill.training.step import Round
from diffusion_distill.training.update import make_update

# What is changed, by the name of the flag that lists its values.
AXES = {
    "batch": "batch_sizes", "channels": "channels", "image size": "image_sizes",
    "rounds": "rounds", "devices": "devices",
}  # fmt: skip
HEADER = [
    "what", "value", "teacher, ms", "student, ms", "images/s", "GFLOP/s", "memory, GB", "programs",
]  # fmt: skip


def point(config: ConfigDict, repeats: int, devices: int) -> dict:
    """The numbers of one config on so many of the devices."""
    mesh = make_mesh(config.runtime.fsdp, jax.devices()[:devices])
    work = Workload(config, mesh)
    compiled = {name: work.compiled_update(stage) for name, stage in work.stages.items()}
    calls = {name: work.updating(work.stages[name], compiled[name].call) for name in compiled}
    seconds = measuring.alternating(calls, repeats)
    memory = compiled["student"].memory
    return {
        "teacher_seconds": seconds["teacher"] / work.per_call,
        "student_seconds": seconds["student"] / work.per_call,
        "images": config.train.batch_size,
        "flops": work.flops(work.stages["student"]),
        "memory": sum(memory) if memory else None,
    }


def chain(config: ConfigDict, rounds: list[int], updates: int) -> list[dict]:
    """The seconds of chains of so many rounds, of one compiled program."""
    work = Workload(config, make_mesh(config.runtime.fsdp, jax.devices()[:1]))
    stage = work.stages["student"]
    update = make_update(work.recipe(stage), work.abstract(stage))
    batches = work.rows()
    found = []
    for count in [0, *rounds]:  # the first is for the compilation
        began = time.perf_counter()
        for number in range(count or 1):
            state = work.state(stage)
            teacher, data, _, key, _ = work.arguments(stage, None)
            round = Round(np.int32(2 ** (count - number)), np.int32(updates))
            round = place(round, replicated(work.mesh))
            for _ in range(updates):
                state, metrics = update(state, teacher, data, next(batches)[2], key, round)
            jax.block_until_ready((state, metrics))
        if count:
            programs = update._cache_size() if hasattr(update, "_cache_size") else None
            seconds = time.perf_counter() - began
            found.append({"rounds": count, "seconds": seconds, "programs": programs})
    batches.close()
    return found


def measure(config: ConfigDict, axes: dict[str, list[int]], repeats: int, updates):
    """Points along each axis: axis -> a dict of numbers for each value."""
    found = {}
    for axis, values in axes.items():
        if axis == "rounds":
            found[axis] = [{"value": r["rounds"], **r} for r in chain(config, values, updates)]
            continue
        found[axis] = []
        for value in values:
            changed = config.copy_and_resolve_references()
            if axis == "batch":
                changed.train.batch_size = value
            elif axis == "channels":
                changed.model.channels, changed.model.emb_channels = value, 4 * value
            elif axis == "image size":
                changed.data.name, changed.data.path = "folder", "made_up"
                changed.data.image_size = value
            devices = value if axis == "devices" else 1
            found[axis].append({"value": value, **point(changed, repeats, devices)})
    return found


def rows(found: dict[str, list[dict]]) -> list[list[str]]:
    """The table's body."""
    body = []
    for axis, points in found.items():
        for p in points:
            if axis == "rounds":
                ms = f"{1e3 * p['seconds'] / p['rounds']:,.0f} a round"
                body.append([axis, str(p["value"]), "", ms, "", "", "", str(p["programs"] or "")])
                continue
            seconds = p["student_seconds"]
            body.append(
                [
                    axis,
                    str(p["value"]),
                    f"{1e3 * p['teacher_seconds']:,.1f}",
                    f"{1e3 * seconds:,.1f}",
                    f"{p['images'] / seconds:,.1f}",
                    f"{p['flops'] / seconds / 1e9:,.0f}",
                    f"{p['memory'] / 1e9:.2f}" if p["memory"] else "",
                    "",
                ]
            )
    return body


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    cli.required("config", flags.FLAGS.config)
    axes = {axis: measuring.integers(name, flags.FLAGS[name].value) for axis, name in AXES.items()}
    if "cpu" in str(jax.config.jax_platforms or "cpu"):
        jax.config.update("jax_num_cpu_devices", max([1, *axes["devices"]]))
    axes["devices"] = [n for n in axes["devices"] if n <= jax.device_count()]
    found = measure(
        flags.FLAGS.config,
        {axis: values for axis, values in axes.items() if values},
        cli.at_least("repeats", flags.FLAGS.repeats, 1),
        cli.at_least("updates", flags.FLAGS.updates, 1),
    )
    record = {"config": flags.FLAGS.config.to_dict(), "points": found}
    measuring.publish(flags.FLAGS.out, record, HEADER, rows(found))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "What is changed from.")
    flags.DEFINE_list("batch_sizes", ["16", "32", "64"], "Images at once.")
    flags.DEFINE_list("channels", ["32", "64", "128"], "Channels at the first resolution.")
    flags.DEFINE_list("image_sizes", ["16", "32", "64"], "Height and width of images.")
    flags.DEFINE_list("rounds", ["1", "2", "4", "8"], "Rounds of distillation.")
    flags.DEFINE_list("devices", ["1", "2", "4"], "How many share a batch.")
    flags.DEFINE_integer("updates", 5, "Updates of a round.")
    flags.DEFINE_integer("repeats", 5, "Times that each update is run.")
    flags.DEFINE_string("out", "runs/benchmarks/scaling.json", "File for the numbers.")
    cli.run(main)
