"""What a training step and a sampling step cost, and how near that is to what the machine can do.

    python -m benchmarks.step --config=configs/cifar10_distill.py

Images are made up and weights random, since times do not depend on them. All that is timed runs in
turn, and each time is a median. Rates are of matrix products and convolutions alone (counted from
the traced program), over the better of a large matrix product and a large convolution measured in
the same minutes. "cold" is the time to trace and compile a step, "warm" to trace it and load it
from the cache of compiled programs. The parts of the teacher's step run as programs of their own,
so that their sum is more than the step, which fuses across them.
"""

import tempfile
from pathlib import Path

import jax
from absl import flags
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict, config_flags

from benchmarks import measuring
from benchmarks.workload import Workload
from diffusion_distill.terminal import cli

HEADER = [
    "what", "ms", "of the teacher's step", "images/s", "GFLOP", "GFLOP/s", "of the peak",
    "memory, GB", "cold, s", "warm, s",
]  # fmt: skip


def measure(config: ConfigDict, repeats: int, num_steps: int, loop_updates: int) -> dict:
    """All numbers, in seconds, bytes and operations.

    Returns:
        "steps", "parts" and "peaks", each name -> fields; and "ratios", what the targets are about.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Workload(config)
        cold = _compiled(work, folder)
        jax.clear_caches()
        compilation_cache.reset_cache()
        warm = _compiled(work, folder)
        # The process's memory counts what compiling took; on a device only programs' own counts.
        size, batch = config.runtime.sampler_batch_size, config.train.batch_size
        peaks = measuring.peaks(config.model.dtype)
        calls = {name: call for name, (call, _) in peaks.items()}
        calls |= {n: work.updating(work.stages[n], warm[n].call) for n in work.stages}
        calls["sampling step"] = work.sampling(num_steps, size)
        parts = work.parts(work.stages["teacher"])
        seconds = measuring.alternating(calls | parts, repeats)
        parts = {name: seconds[name] for name in parts}
        parts["input"] /= work.per_call
        steps = {}
        for name, stage in work.stages.items():
            steps[f"{name}'s step"] = {
                "seconds": seconds[name] / work.per_call,
                "images": batch,
                "flops": work.flops(stage),
                "compilers_flops": warm[name].flops,
                "memory": warm[name].memory,
                "cold_seconds": cold[name].seconds,
                "warm_seconds": warm[name].seconds,
            }
        steps["sampling step"] = {
            "seconds": seconds["sampling step"] / num_steps,
            "images": size,
            "flops": work.forward_flops(size),
        }
        teacher, student = steps["teacher's step"]["seconds"], steps["student's step"]["seconds"]
        ratios = {
            "student / teacher": student / teacher,
            "update / teacher": parts["update"] / teacher,
            "input / teacher": parts["input"] / teacher,
        }
        if loop_updates:
            stage, program = work.stages["teacher"], warm["teacher"].call
            loop = work.loop(stage, program, loop_updates, Path(folder) / "loop")
            ratios["loop / its steps"] = loop / (loop_updates * teacher)
        return {
            "config": config.to_dict(),
            "steps": steps,
            "parts": parts,
            "peaks": {name: flops / seconds[name] for name, (_, flops) in peaks.items()},
            "devices_used": work.mesh.size,
            "ratios": ratios,
            "peak_memory": measuring.peak_memory(),
        }


def _compiled(work: Workload, folder: str) -> dict:
    """Both updates, by way of a cache of compiled programs in `folder`."""
    before = (
        jax.config.jax_compilation_cache_dir,
        jax.config.jax_persistent_cache_min_compile_time_secs,
    )
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()  # JAX reads the setting once
    try:
        return {name: work.compiled_update(stage) for name, stage in work.stages.items()}
    finally:
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
        compilation_cache.reset_cache()


def rows(found: dict) -> list[list[str]]:
    """The table's body."""
    peak = max(found["peaks"].values()) * found["devices_used"]  # each measured on one device
    teacher = found["steps"]["teacher's step"]["seconds"]
    body = []
    for name, step in found["steps"].items():
        seconds, flops = step["seconds"], step["flops"]
        memory, cold = step.get("memory"), step.get("cold_seconds")
        body.append(
            [
                name,
                f"{1e3 * seconds:,.1f}",
                f"{seconds / teacher:.2f}",
                f"{step['images'] / seconds:,.1f}",
                f"{flops / 1e9:,.1f}",
                f"{flops / seconds / 1e9:,.0f}",
                f"{flops / seconds / peak:.0%}",
                f"{memory[0] / 1e9:.2f} + {memory[1] / 1e9:.2f}" if memory else "",
                f"{cold:.1f}" if cold else "",
                f"{step['warm_seconds']:.1f}" if cold else "",
            ]
        )
    empty = [""] * (len(HEADER) - 3)
    for name, seconds in found["parts"].items():
        body.append(
            [f"teacher: {name}", f"{1e3 * seconds:,.1f}", f"{seconds / teacher:.3f}", *empty]
        )
    for name, rate in found["peaks"].items():
        empty = [""] * (len(HEADER) - 6)
        body.append([name, "", "", "", "", f"{rate / 1e9:,.0f}", *empty])
    return body


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    measuring.start()
    cli.required("config", flags.FLAGS.config)
    found = measure(
        flags.FLAGS.config,
        cli.at_least("repeats", flags.FLAGS.repeats, 1),
        cli.at_least("num_steps", flags.FLAGS.num_steps, 1),
        cli.at_least("loop_updates", flags.FLAGS.loop_updates, 0),
    )
    measuring.publish(flags.FLAGS.out, found, HEADER, rows(found))
    for name, ratio in found["ratios"].items():
        print(f"{name}: {ratio:.3f}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Whose steps.")
    flags.DEFINE_integer("repeats", 10, "Times that each is run.")
    flags.DEFINE_integer("num_steps", 4, "Of the sampling that a step is taken from.")
    flags.DEFINE_integer(
        "loop_updates",
        100,
        "Updates in the training loop, logs and a checkpoint with them; 0: none.",
    )
    flags.DEFINE_string("out", "runs/benchmarks/step.json", "File for the numbers.")
    cli.run(main)
