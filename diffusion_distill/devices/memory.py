"""This process's memory on a CPU: kept from one step to the next.

XLA asks for a program's memory at each call. glibc gets so large a piece from the system, which
zeroes it page by page, and gives it back after the call: a tenth of a step (RESULTS.md).
"""

import contextlib
import ctypes
import importlib.util
import sys

import jax

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of mallopt, in glibc's malloc.h


def keep() -> None:
    """From here on, what is freed stays with this process, and serves what is asked for next.

    Only where JAX has nothing but CPUs, and with glibc; elsewhere nothing is changed. To be called
    before JAX starts: each of its threads would otherwise have memory of its own, which glibc gives
    back all the same.
    """
    accelerators = ("jax_plugins", "libtpu")  # what brings them to JAX
    if jax.config.jax_platforms != "cpu" and any(map(importlib.util.find_spec, accelerators)):
        return
    if sys.platform != "linux":
        return
    with contextlib.suppress(AttributeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_ARENA_MAX, 1)  # one for all threads, which alone can grow without bound
        mallopt(_MMAP_MAX, 0)  # nothing by system calls of its own
        mallopt(_TRIM_THRESHOLD, -1)  # nothing is given back
