"""How a person or a scheduler stops a run: by a signal, after which it saves, then ends."""

import os
import signal

from diffusion_distill.devices import distributed
from diffusion_distill.devices.distributed import several
from diffusion_distill.errors import Stopped
from diffusion_distill.terminal.console import say, say_in_handler

# That a terminal is gone, or that time is short: Slurm's and others' notices.
NOTICES = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
STOPPING = "stopping: what is trained is saved first"


class StopSignal:
    """Turns signals into a flag for the time of a `with`: training saves, then stops.

    They are SIGTERM, Ctrl-C and those of NOTICES that are not ignored, as SIGHUP is after nohup.
    A second SIGTERM or Ctrl-C acts as it would have without this; further notices do nothing. Of
    several processes any may be the one that gets it; there SIGTERM is JAX's own, which tells the
    others.
    """

    signum: int | None = None

    def __enter__(self) -> "StopSignal":
        handled = [signal.SIGINT] if several() else [signal.SIGTERM, signal.SIGINT]
        handled += [s for s in NOTICES if signal.getsignal(s) != signal.SIG_IGN]
        self._before = {s: signal.signal(s, self._note) for s in handled}
        return self

    def asked(self) -> int | None:
        """The signal that asks to stop now; None to go on.

        The same answer in all of several processes, which call it equally often.
        """
        if distributed.reached_preemption():
            self.signum = signal.SIGTERM
            say(STOPPING)
        return self.signum

    def raise_if_asked(self) -> None:
        """Raises Stopped where it is time to stop; called as often in each of several processes."""
        if self.asked() is not None:
            raise Stopped(self.signum)

    def _note(self, signum, frame):
        self._reset()
        for notice in self._before.keys() & NOTICES:
            signal.signal(notice, signal.SIG_IGN)
        if several():
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self.signum = signum
        say_in_handler(STOPPING)

    def _reset(self):
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def __exit__(self, *exception):
        self._reset()
