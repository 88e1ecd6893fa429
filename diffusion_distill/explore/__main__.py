"""A page to look at what a run can draw, on this machine.

    python -m diffusion_distill.explore --workdir=runs/digits

Needs the extra: pip install -e '.[explore]'. The page needs no network, and only this machine
reaches it; --host=0.0.0.0 lets others in, who then may draw with it, and see what it draws.
"""

import signal

from absl import flags

from diffusion_distill.devices import compiler
from diffusion_distill.errors import UserError
from diffusion_distill.explore.world import World
from diffusion_distill.terminal import cli
from diffusion_distill.terminal.console import say

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to serve on.")
_PORT = flags.DEFINE_integer(
    "port", 7860, "Port to serve on; 0 for any free one.", lower_bound=0, upper_bound=65535
)


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    cli.required("workdir", _WORKDIR.value)
    signal.signal(signal.SIGTERM, _end)
    world = World(_WORKDIR.value)
    compiler.start(world.run.config.runtime.cache_dir)
    try:
        from diffusion_distill.explore import page, serve
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "fastapi", "uvicorn"):
            raise
        raise UserError(f"{error.name} is not installed: pip install -e '.[explore]'") from error
    address, thread = serve.start(page.build(world), _HOST.value, _PORT.value)
    say(f"{_WORKDIR.value}: {len(world.stages())} finished stages at {address} (Ctrl-C ends it)")
    thread.join()
    raise RuntimeError("the page's server ended by itself")


def _end(signum, frame):
    """Ends at once, whatever is being drawn or compiled: nothing is lost."""
    cli.fail(128 + signum, f"ended by signal {signum}", KeyboardInterrupt())


if __name__ == "__main__":
    cli.run(main)
