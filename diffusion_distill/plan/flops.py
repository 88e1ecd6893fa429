"""The floating-point operations of a program, counted before any compiler has seen it."""

import functools
import math
from typing import NamedTuple

import jax
import numpy as np
from jax.extend import core

from diffusion_distill.devices import onednn


class Flops(NamedTuple):
    """Operations of matrix multiplications and convolutions; a multiply and an add are two."""

    # With every turn of each loop; one of a loop whose length is an argument, as a sampler's.
    total: float
    once: float  # with one turn of each loop: a compiler's own counts are of this kind


def count_flops(jaxpr: core.Jaxpr) -> Flops:
    """The operations of a traced program on all devices together, remat's included.

    Multiplications by a convolution's padding do not count.
    """
    total = once = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name in _COUNTS:
            flops = _COUNTS[equation.primitive.name](equation)
            total, once = total + flops, once + flops
            continue
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in core.jaxprs_in_params(equation.params):
            flops = count_flops(inner)
            total, once = total + turns * flops.total, once + flops.once
    return Flops(total, once)


def _dot(equation) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[a] for a in contracted)


def _convolution(equation) -> float:
    image, kernel = (variable.aval.shape for variable in equation.invars)
    output, settings = equation.outvars[0].aval.shape, equation.params
    images, kernels, outputs = settings["dimension_numbers"]
    # Of groups the shapes tell: a kernel has the input features of one.
    flops = 2.0 * output[outputs[0]] * output[outputs[1]] * kernel[kernels[1]]
    for n, (i, k, o) in enumerate(zip(images[2:], kernels[2:], outputs[2:], strict=True)):
        flops *= _inside(image[i], kernel[k], output[o], settings, n)
    return flops


def _inside(size: int, kernel: int, outputs: int, settings: dict, n: int) -> int:
    """Along axis n, the pairs of an output and a kernel's element that meet an input."""
    stride, dilation = settings["window_strides"][n], settings["lhs_dilation"][n]
    first = np.arange(outputs)[:, None] * stride - settings["padding"][n][0]
    at = first + np.arange(kernel) * settings["rhs_dilation"][n]
    return int(np.sum((at >= 0) & (at <= (size - 1) * dilation) & (at % dilation == 0)))


def _by_onednn(equation) -> float:
    """Of a primitive of devices/onednn.py, on the way to XLA or to oneDNN."""
    arguments = [variable.aval for variable in equation.invars]
    by_xla = functools.partial(onednn.BY_XLA[equation.primitive.name], **equation.params)
    return count_flops(jax.make_jaxpr(by_xla)(*arguments).jaxpr).total


_COUNTS = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    **dict.fromkeys(onednn.BY_XLA, _by_onednn),
}
