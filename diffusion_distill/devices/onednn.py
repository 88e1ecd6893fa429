"""Convolutions on CPU by oneDNN, where the extra `onednn` is installed.

XLA's own take longer in float32, and many times as long in bfloat16, for which newer processors
have units that XLA on CPU leaves idle (RESULTS.md). Results agree to rounding. A program
for one CPU device that is traced after `use` has them; programs for several devices and for
accelerators are as they were.

XLA calls a function in C++ (onednn.cc), which is compiled at the first start and kept.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.extend.core import Primitive
from jax.interpreters import mlir

ONEDNN = "DIFFUSION_DISTILL_ONEDNN"  # environment variable: 0 leaves oneDNN out
_SOURCE = Path(__file__).with_name("onednn.cc")
_LIBRARY = Path(sys.prefix) / "lib" / "libdnnl.so"  # where the extra's wheels put it
_TARGET = "diffusion_distill_convolve"
_FORWARD, _INPUT_GRADIENT, _KERNEL_GRADIENT = range(3)  # Kind in onednn.cc

_is_used = False


def _is_wanted() -> bool:
    return _LIBRARY.exists() and os.environ.get(ONEDNN) != "0"


if _is_wanted():
    # Else OpenMP's threads, when they wait, spin on the cores that XLA's need, and a step takes
    # twice as long. Said here since the first to load OpenMP reads it, and that may be PyTorch.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def use(cache: Path) -> None:
    """From here on, convolutions of this process's CPU programs are oneDNN's, where they can be.

    They stay XLA's where the extra is not installed, where ONEDNN is 0, and, with a line in the
    log, where no C++ compiler is at hand. What is compiled is kept in `cache`.
    """
    global _is_used
    if not _is_used and _is_wanted():
        try:
            function = ctypes.CDLL(str(_compiled(cache))).convolve
        except (OSError, subprocess.SubprocessError) as error:
            logging.warning("Convolutions stay XLA's; oneDNN cannot be used: %s", error)
            return
        jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(function), platform="cpu")
        _is_used = True


def is_used() -> bool:
    """Whether `use` found oneDNN."""
    return _is_used


def _compiled(cache: Path) -> Path:
    """The library made of onednn.cc, compiled unless it is in `cache`.

    Raises OSError or subprocess.SubprocessError where it cannot be.
    """
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise OSError("there is no C++ compiler (c++, g++ or clang++)")
    include = [jax.ffi.include_dir(), str(Path(sys.prefix) / "include")]
    command = [compiler, "-O2", "-std=c++17", "-shared", "-fPIC", "-w", str(_SOURCE)]
    command += [f"-I{folder}" for folder in include] + [str(_LIBRARY)]
    command += [f"-Wl,-rpath,{_LIBRARY.parent}"]
    version = _LIBRARY.resolve().name  # libdnnl.so.3.2
    told = "\n".join([*command, version, jax.__version__, _SOURCE.read_text()])
    library = cache / f"onednn-{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / library.name
            run = subprocess.run(
                [*command, "-o", made], capture_output=True, text=True, timeout=300
            )
            if run.returncode:
                raise OSError(f"{compiler} failed: {run.stderr.strip()[:500]}")
            os.replace(made, library)
    return library


class _Window(NamedTuple):
    """How a kernel goes over the pixels."""

    stride: int
    padding: tuple[tuple[int, int], tuple[int, int]]


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    padding: str | tuple[tuple[int, int], tuple[int, int]] = "SAME",
) -> jax.Array:
    """jax.lax.conv_general_dilated of [B, H, W, I] and [h, w, I, O], of one dtype.

    `stride` is that of rows and of columns. By oneDNN the gradient is made in reverse mode alone.
    """
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride, stride), padding)
    window = _Window(stride, tuple(map(tuple, padding)))
    if _is_used and x.dtype in (jnp.float32, jnp.bfloat16):
        return _with_gradients(x, kernel, window)
    return by_xla(x, kernel, kind=_FORWARD, shape=(), window=window)


def by_xla(first, second, *, kind, shape, window):
    """What the primitive below says, for any device."""

    def forward(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (window.stride, window.stride),
            window.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    wanted = jax.ShapeDtypeStruct(shape, first.dtype)
    if kind == _INPUT_GRADIENT:
        return jax.linear_transpose(lambda x: forward(x, second), wanted)(first)[0]
    if kind == _KERNEL_GRADIENT:
        return jax.linear_transpose(lambda kernel: forward(first, kernel), wanted)(second)[0]
    return forward(first, second)


@functools.partial(jax.jit, static_argnames=("kind", "shape", "window"))
def _call(first, second, *, kind, shape, window):
    return PRIMITIVE.bind(first, second, kind=kind, shape=shape, window=window)


def _shape(first, second, **how):
    made = jax.eval_shape(functools.partial(by_xla, **how), first, second)
    return jax.core.ShapedArray(made.shape, made.dtype)


def _lower_on_cpu(context, first, second, *, kind, shape, window):
    """By oneDNN in a program for one device; XLA would not know how to divide the call."""
    if getattr(context.module_context.axis_context, "num_devices", None) != 1:
        return _lower_by_xla(context, first, second, kind=kind, shape=shape, window=window)
    return jax.ffi.ffi_lowering(_TARGET)(
        context,
        first,
        second,
        kind=np.int64(kind),
        stride=np.int64(window.stride),
        padding=np.asarray(window.padding, np.int64).ravel(),
    )


# By kind: of images and kernel, the result; of the result's gradient and kernel, that of images;
# of images and the result's gradient, that of the kernel. The gradients are of `shape`.
PRIMITIVE = Primitive("convolve")
PRIMITIVE.def_impl(_call)
PRIMITIVE.def_abstract_eval(_shape)
_lower_by_xla = mlir.lower_fun(by_xla, multiple_results=False)
mlir.register_lowering(PRIMITIVE, _lower_by_xla)
mlir.register_lowering(PRIMITIVE, _lower_on_cpu, "cpu")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _with_gradients(x, kernel, window):
    return PRIMITIVE.bind(x, kernel, kind=_FORWARD, shape=(), window=window)


def _forward(x, kernel, window):
    return _with_gradients(x, kernel, window), (x, kernel)


def _backward(window, saved, gradient):
    x, kernel = saved
    return (
        PRIMITIVE.bind(gradient, kernel, kind=_INPUT_GRADIENT, shape=x.shape, window=window),
        PRIMITIVE.bind(x, gradient, kind=_KERNEL_GRADIENT, shape=kernel.shape, window=window),
    )


_with_gradients.defvjp(_forward, _backward)
