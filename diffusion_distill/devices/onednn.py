"""Convolutions and matrix products on CPU by oneDNN, where the extra `onednn` is installed.

XLA's own take longer in float32, and many times as long in bfloat16, for which newer processors
have units that XLA on CPU leaves idle (RESULTS.md). Results agree to rounding. A program
for one CPU device that is traced after `use` has them; programs for several devices and for
accelerators are as they were.

XLA calls functions in C++ (onednn.cc), which are compiled at the first start and kept.
"""

import ctypes
import functools
import hashlib
import math
import os
import shutil
import string
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
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
_FORWARD, _INPUT_GRADIENT, _KERNEL_GRADIENT = range(3)  # Kind in onednn.cc

_is_used = False


def _is_wanted() -> bool:
    return _LIBRARY.exists() and os.environ.get(ONEDNN) != "0"


if _is_wanted():
    # Else OpenMP's threads, when they wait, spin on the cores that XLA's need, and a step takes
    # twice as long. Said here since the first to load OpenMP reads it, and that may be PyTorch.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def use(cache: Path) -> None:
    """From here on, what this module computes is oneDNN's in this process's CPU programs.

    They stay XLA's where the extra is not installed, where ONEDNN is 0, and, with a line in the
    log, where no C++ compiler is at hand. What is compiled is kept in `cache`.
    """
    global _is_used
    if not _is_used and _is_wanted():
        try:
            library = ctypes.CDLL(str(_compiled(cache)))
        except (OSError, subprocess.SubprocessError) as error:
            logging.warning("Convolutions stay XLA's, and products: no oneDNN: %s", error)
            return
        for name in BY_XLA:
            capsule = jax.ffi.pycapsule(getattr(library, name))
            jax.ffi.register_ffi_target(_target(name), capsule, platform="cpu")
        _is_used = True


def _target(name: str) -> str:
    return f"diffusion_distill_{name}"


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


def _can_be(x: jax.Array) -> bool:
    return _is_used and x.dtype in (jnp.float32, jnp.bfloat16)


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
    if not _can_be(x):
        return _convolve_by_xla(x, kernel, kind=_FORWARD, shape=(), window=window)
    return _convolution(x, kernel, window)


def einsum(
    spec: str, x: jax.Array, y: jax.Array, dtype: jax.typing.DTypeLike | None = None
) -> jax.Array:
    """jnp.einsum of two arrays of one dtype, summed in float32; the result is of `dtype` or theirs.

    Every letter of `spec` ("btnh,bsnh->bnts") stands in two of its parts or in all three. By oneDNN
    the gradient is made in reverse mode alone, and of a result that has the arrays' own dtype.
    """
    dtype = jnp.dtype(dtype or x.dtype)
    if not _can_be(x):
        return _multiply_by_xla(x, y, spec=spec, dtype=dtype)
    return _einsum(spec, x, y) if dtype == x.dtype else _product(spec, x, y, dtype)


def dot_general(x, y, dimension_numbers, precision=None, preferred_element_type=None):
    """jax.lax.dot_general, for flax's layers: by `einsum` where no axes are a batch's."""
    (x_summed, y_summed), batch = dimension_numbers
    if not _can_be(x) or any(batch):
        return jax.lax.dot_general(x, y, dimension_numbers, precision, preferred_element_type)
    of_x, of_y = string.ascii_lowercase[: x.ndim], list(string.ascii_uppercase[: y.ndim])
    for i, j in zip(x_summed, y_summed, strict=True):
        of_y[j] = of_x[i]
    made = [a for a in (*of_x, *of_y) if (a in of_x) != (a in of_y)]
    return einsum(f"{of_x},{''.join(of_y)}->{''.join(made)}", x, y, preferred_element_type)


def _convolve_by_xla(first, second, *, kind, shape, window):
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


def _convolve_attributes(*arrays, kind, shape, window):
    del arrays, shape  # C++ sees them
    padding = np.asarray(window.padding, np.int64).ravel()
    return {"kind": np.int64(kind), "stride": np.int64(window.stride), "padding": padding}


def _parts(spec: str) -> list[str]:
    """The letters of the two factors and of the result."""
    return spec.replace("->", ",").split(",")


def _multiply_by_xla(first, second, *, spec, dtype):
    return jnp.einsum(spec, first, second, preferred_element_type=dtype)


def _multiply_attributes(*arrays, spec, dtype):
    """Sizes and strides of the three arrays as [..., M, K], [..., K, N] and [..., M, N].

    None where such a group of axes does not lie in memory as one axis would.
    """
    del dtype  # C++ sees it
    x, y, z = _parts(spec)
    batch = [a for a in z if a in x and a in y]
    m, k = [a for a in x if a not in y], [a for a in x if a not in z]
    n = [a for a in y if a not in x]
    sizes, strides = [], []
    for letters, array, axes in zip((x, y, z), arrays, ((m, k), (k, n), (m, n)), strict=True):
        size_of = dict(zip(letters, array.shape, strict=True))
        stride_of = {a: math.prod(array.shape[i + 1 :]) for i, a in enumerate(letters)}
        for group in [*([a] for a in batch), *axes]:
            long = [a for a in group if size_of[a] > 1]
            if any(stride_of[a] != stride_of[b] * size_of[b] for a, b in pairwise(long)):
                return None
            sizes.append(math.prod(size_of[a] for a in group))
            strides.append(stride_of[long[-1]] if long else math.prod(array.shape))
    if strides[-1] != 1:  # the columns of the result must be next to each other
        return None
    return {"sizes": np.asarray(sizes, np.int64), "strides": np.asarray(strides, np.int64)}


def _primitive(name: str, by_xla: Callable, attributes: Callable) -> Primitive:
    """An operation on two arrays that is `by_xla`, on CPU the function `name` in onednn.cc.

    `attributes` makes of the three arrays and the parameters what C++ is told, or None where it
    can't do it.
    """
    primitive = Primitive(name)

    @functools.partial(jax.jit, static_argnums=2)
    def call(first, second, parameters):
        return primitive.bind(first, second, **dict(parameters))

    def shape(first, second, **parameters):
        made = jax.eval_shape(functools.partial(by_xla, **parameters), first, second)
        return jax.core.ShapedArray(made.shape, made.dtype)

    lower_by_xla = mlir.lower_fun(by_xla, multiple_results=False)

    def lower_on_cpu(context, first, second, **parameters):
        # In a program for one device; XLA would not know how to divide the call.
        told = None
        if getattr(context.module_context.axis_context, "num_devices", None) == 1:
            told = attributes(*context.avals_in, *context.avals_out, **parameters)
        if told is None:
            return lower_by_xla(context, first, second, **parameters)
        return jax.ffi.ffi_lowering(_target(name))(context, first, second, **told)

    primitive.def_impl(lambda *arrays, **parameters: call(*arrays, tuple(parameters.items())))
    primitive.def_abstract_eval(shape)
    mlir.register_lowering(primitive, lower_by_xla)
    mlir.register_lowering(primitive, lower_on_cpu, "cpu")
    return primitive


# By kind: of images and kernel, the result; of the result's gradient and kernel, that of images;
# of images and the result's gradient, that of the kernel. The gradients are of `shape`.
_CONVOLVE = _primitive("convolve", _convolve_by_xla, _convolve_attributes)
_MULTIPLY = _primitive("multiply", _multiply_by_xla, _multiply_attributes)
BY_XLA = {"convolve": _convolve_by_xla, "multiply": _multiply_by_xla}  # by the primitive's name


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolution(x, kernel, window):
    return _CONVOLVE.bind(x, kernel, kind=_FORWARD, shape=(), window=window)


def _convolution_forward(x, kernel, window):
    return _convolution(x, kernel, window), (x, kernel)


def _convolution_backward(window, saved, gradient):
    x, kernel = saved
    return (
        _CONVOLVE.bind(gradient, kernel, kind=_INPUT_GRADIENT, shape=x.shape, window=window),
        _CONVOLVE.bind(x, gradient, kind=_KERNEL_GRADIENT, shape=kernel.shape, window=window),
    )


_convolution.defvjp(_convolution_forward, _convolution_backward)


def _product(spec, x, y, dtype):
    """The primitive; the factor that has the result's last axis comes second."""
    of_x, of_y, made = _parts(spec)
    if made[-1] in of_x:
        spec, x, y = f"{of_y},{of_x}->{made}", y, x
    return _MULTIPLY.bind(x, y, spec=spec, dtype=jnp.dtype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum(spec, x, y):
    return _product(spec, x, y, x.dtype)


def _einsum_forward(spec, x, y):
    return _einsum(spec, x, y), (x, y)


def _einsum_backward(spec, saved, gradient):
    x, y = saved
    of_x, of_y, made = _parts(spec)
    return (
        _product(f"{made},{of_y}->{of_x}", gradient, y, x.dtype),
        _product(f"{made},{of_x}->{of_y}", gradient, x, x.dtype),
    )


_einsum.defvjp(_einsum_forward, _einsum_backward)
