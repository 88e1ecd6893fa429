"""What the benchmarks share: timing side by side, the machine's peak, and what they write."""

import datetime
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_distill.devices import compiler, onednn
from diffusion_distill.errors import UserError
from diffusion_distill.report.table import markdown
from diffusion_distill.storage.files import cache_folder, write_atomically
from diffusion_distill.version import code_version

PAUSE = 0.02  # seconds before each call, in which threads of the one before go to sleep


def start() -> None:
    """Before anything is traced: oneDNN where it is installed, as commands have it."""
    onednn.use(cache_folder())


def alternating(calls: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """The median seconds of each call, all made in turn, so that what slows one slows the others.

    Args:
        calls: each does its work and waits for it; has run before.
        repeats: times that each is made.
    """
    seconds = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            time.sleep(PAUSE)
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def peaks(dtype: str) -> dict[str, tuple[Callable[[], None], float]]:
    """Large operations that a machine does at its best: name -> (call, its operations).

    A product of matrices of 2048 (8192 on accelerators), and a 3x3 convolution of 256 channels.
    """
    on_cpu = jax.default_backend() == "cpu"
    size, images = (2048, 4) if on_cpu else (8192, 256)
    matrix = jnp.ones((size, size), dtype)
    x, kernel = jnp.ones((images, 32, 32, 256), dtype), jnp.ones((3, 3, 256, 256), dtype)

    def ready(function, *arguments):
        compiled = jax.jit(function, compiler_options=compiler.options(jax.default_backend()))
        jax.block_until_ready(compiled(*arguments))
        return lambda: jax.block_until_ready(compiled(*arguments))

    # At the border a kernel's element meets no pixel in 1 of 32 rows, and so with columns.
    inside = (32 + 31 + 31) ** 2
    return {
        "matrix product": (ready(jnp.matmul, matrix, matrix), 2.0 * size**3),
        "convolution": (ready(onednn.convolution, x, kernel), 2.0 * images * inside * 256**2),
    }


def integers(name: str, values: list[str]) -> list[int]:
    """What the flag --name lists.

    Raises:
        UserError: a value is no integer.
    """
    try:
        return [int(value) for value in values]
    except ValueError as error:
        raise UserError(f"--{name} must be integers: {error}") from None


def machine() -> dict:
    """What a number was measured on, and with what."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": code_version(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "convolutions": "oneDNN" if onednn.is_used() else "XLA",
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")


def peak_memory() -> int:
    """Bytes that this process has held at most: on the device where that is counted, else in all.

    CPUs do not count their own; there it is the process's resident memory.
    """
    counted = jax.devices()[0].memory_stats() or {}
    return counted.get("peak_bytes_in_use") or (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )


def publish(out: str, record: dict, header: list[str], rows: list[list[str]]) -> None:
    """Writes the record, with the machine's, as JSON to `out`, and prints the table."""
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({**machine(), **record}, indent=1) + "\n")
    print(markdown(header, rows))
    print(f"\n{path}", flush=True)
