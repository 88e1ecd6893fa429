"""Make a run's report anew, or compare several runs in one.

    python -m diffusion_distill.report --workdir=runs/digits
    python -m diffusion_distill.report --workdir=runs/a --workdir=runs/b --out=comparison.html

A run writes WORKDIR/report.html by itself after each stage. The page needs nothing beside itself;
its plots are also written as PNG files, into a folder beside it of the same name.
"""

from absl import flags

from diffusion_distill.errors import UserError
from diffusion_distill.report.page import write
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.terminal import cli
from diffusion_distill.terminal.console import say

_WORKDIRS = flags.DEFINE_multi_string("workdir", None, "Folder of a run; several are compared.")
_OUT = flags.DEFINE_string(
    "out", None, "The page, *.html; default: report.html in the workdir, or comparison.html here."
)


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    workdirs = [as_path(path) for path in _WORKDIRS.value or []]
    cli.required("workdir", workdirs)
    several = len(workdirs) > 1
    out = as_path(_OUT.value or ("comparison.html" if several else workdirs[0] / "report.html"))
    if out.suffix != ".html":
        raise UserError(f"--out={out} must end in .html")
    for problem in write(workdirs, out):
        say(f"warning: {problem}")
    say(str(out))


if __name__ == "__main__":
    cli.run(main)
