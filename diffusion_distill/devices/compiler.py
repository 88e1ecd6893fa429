"""What the compiler is told, and where what it made is kept.

XLA's defaults for accelerators stand. On CPU two of them cost a U-Net half of its speed, and each
program says otherwise (`options`), so that nothing else in the process is touched.
"""

import contextlib
import functools
import hashlib
import platform as machine
from collections.abc import Iterator
from pathlib import Path

import jax

from diffusion_distill.devices import onednn
from diffusion_distill.storage.files import cache_folder

# By what it brings, on two cores of an AMD EPYC (RESULTS.md):
_CPU_OPTIONS = {
    # Matrix products, and with them convolutions, by YNNPACK in place of Eigen: the gradient of a
    # kernel takes half of the time, large convolutions a tenth less.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
    # Keeps optimization barriers until fusion is over: models/layers.py and remat live by them.
    "xla_disable_hlo_passes": "cse_barrier_expander",
}


@functools.cache
def options(platform: str) -> dict[str, str] | None:
    """jax.jit's compiler_options for a program that is to be fast on "cpu", "gpu" or "tpu".

    None where XLA's defaults stand. An option that this jaxlib does not know is left out.
    """
    if platform != "cpu":
        return None
    device = jax.local_devices(backend="cpu")[0]

    def is_known(name: str) -> bool:
        with jax.default_device(device):
            try:
                function = jax.jit(lambda x: x, compiler_options={name: _CPU_OPTIONS[name]})
                function.lower(0.0).compile()
            except jax.errors.JaxRuntimeError:
                return False
        return True

    return {name: value for name, value in _CPU_OPTIONS.items() if is_known(name)} or None


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """A `with`, or a decorator, in which this thread has JAX's own settings of numbers.

    Else JAX_ENABLE_X64 or JAX_THREEFRY_PARTITIONABLE, set for another program or by the one around,
    would give other images from the same seed, and strict JAX_NUMPY_DTYPE_PROMOTION or
    JAX_NUMPY_RANK_PROMOTION none. The generator is named where a key is made: `seed_key`.
    """
    with (
        jax.enable_x64(False),
        jax.threefry_partitionable(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.transfer_guard("allow"),
    ):
        yield


def start(named: str = "") -> None:
    """What a command does before it compiles: see `keep_programs` and `onednn.use`."""
    keep_programs(named)
    onednn.use(cache_folder(named))


def keep_programs(named: str = "") -> None:
    """Keeps compiled programs in the folder `compiled` of `cache_folder(named)`, for later starts.

    JAX's own persistent cache does it, for each kind of CPU apart: a program for one may crash on
    another. Of several processes the first alone writes, so that other hosts, with caches of their
    own, compile at each start. Where JAX was told a place (JAX_COMPILATION_CACHE_DIR) or to keep
    nothing (JAX_ENABLE_COMPILATION_CACHE=0), nothing is changed; where the folder cannot be made,
    as in a home that is read only, nothing is kept. Removing it does no harm.
    """
    folder = cache_folder(named) / "compiled" / _cpu()
    if jax.config.jax_compilation_cache_dir is None and jax.config.jax_enable_compilation_cache:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # A run has many small programs besides its large ones; together they take as long.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _cpu() -> str:
    """A name for this kind of CPU: the architecture, and a digest of the model and its features."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = [machine.processor()]
    told = ("model name", "flags", "Features", "CPU part")
    features = sorted({line for line in lines if line.startswith(told)}) or lines
    return f"{machine.machine()}-{hashlib.sha256(''.join(features).encode()).hexdigest()[:8]}"
