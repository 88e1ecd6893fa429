"""What a run takes on hardware that is not at hand: memory, time, chip-hours.

    python -m diffusion_distill.plan --config=configs/imagenet64_distill.py --topology=v5e:8x8

The programs of the run, the teacher's update, the student's and the sampler, are compiled ahead of
time for the topology, without running anything. --topology is a TPU slice (v4:2x2x2, v5e:8x8,
v5p:4x4x4, v6e:4x4; this takes `pip install 'diffusion_distill[tpu]'`, and no TPU), GPUs of one host
(h100:8, a100:8, h200:1, l4:1; memory is then an estimate by the compiler for CPUs), or cpu:8
(simulated devices: memory and operations, no time). Neither the data nor a workdir is needed.

Times are lower bounds: each program computes at the chip's peak, or moves the bytes that it touches
at the memory's peak, or sends at the links' peak, and does nothing but the slowest of these. A run
takes longer. Where another setting is known to cost less on TPUs, its chip-hours are said, too;
--operations=50 lists where the bytes go.
"""

import dataclasses
import json

from absl import flags
from ml_collections import config_flags

from diffusion_distill.plan import hardware
from diffusion_distill.plan.cost import LISTED
from diffusion_distill.plan.make import make_plan
from diffusion_distill.plan.text import text
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.storage.files import check_can_write, write_atomically
from diffusion_distill.terminal import cli
from diffusion_distill.terminal.console import say

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file in configs/; FILE:VARIANT works.")
_TOPOLOGY = flags.DEFINE_string("topology", None, f"What to plan for: {hardware.ACCEPTED}.")
_JSON = flags.DEFINE_string("json", None, "A file for the same numbers as JSON.")
_FULL_EFFORT = flags.DEFINE_bool(
    "full_effort", False, "Whether to compile for TPUs as a run does: hours in place of minutes."
)
_COMPARE = flags.DEFINE_bool(
    "compare", True, "Whether to plan it with the best setting known, too, where that is another."
)
_OPERATIONS = flags.DEFINE_integer(
    "operations", 0, f"How many operations of each program to list, at most {LISTED}."
)


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    cli.required("config", _CONFIG.value)
    topology = hardware.parse_topology(cli.required("topology", _TOPOLOGY.value))
    listed = cli.at_least("operations", _OPERATIONS.value, 0)
    getattr(_CONFIG.value, "seed", None)  # a config that could not be read raises why when touched
    if _JSON.value:  # what cannot be written is found before minutes of compiling, not after
        check_can_write(as_path(_JSON.value))
    plan = make_plan(_CONFIG.value, topology, _FULL_EFFORT.value, _COMPARE.value)
    if _JSON.value:
        fields = dataclasses.asdict(plan) | {"topology": str(topology)}
        write_atomically(as_path(_JSON.value), json.dumps(fields, indent=1) + "\n")
    say("\n" + text(plan, _CONFIG.value, listed))


if __name__ == "__main__":
    cli.run(main)
