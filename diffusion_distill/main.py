"""Run a config: every stage, from where it stands to the end.

    python -m diffusion_distill.main --config=configs/digits_distill.py --workdir=runs/digits

The same command continues a run that was stopped. `--config.train.batch_size=64` overrides a field.

On several hosts the same command is started on each. On a Cloud TPU, under Slurm and under Open MPI
they find each other by themselves; elsewhere --coordinator, --num_processes and --process_id say
how. The workdir must be one folder that all of them see, or one in a bucket.
"""

import time

from absl import flags
from ml_collections import config_flags

from diffusion_distill.report.table import results_table
from diffusion_distill.run import run_config
from diffusion_distill.terminal import cli
from diffusion_distill.terminal.console import duration, say

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file in configs/; FILE:VARIANT works.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, here or as gs://bucket/folder; made if it is not there."
)


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    cli.required("config", _CONFIG.value)
    cli.required("workdir", _WORKDIR.value)
    began = time.monotonic()
    getattr(_CONFIG.value, "seed", None)  # a config that could not be read raises why when touched
    workdir = run_config(_CONFIG.value, _WORKDIR.value).workdir
    say("\n" + results_table(workdir.results()))
    say(f"\n{workdir.path}: done in {duration(time.monotonic() - began)}")


if __name__ == "__main__":
    cli.run(main, several=True)
