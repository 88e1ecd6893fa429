"""The floating-point operations of a program, counted before any compiler has seen it."""

import math
from typing import NamedTuple

from jax.extend import core


class Flops(NamedTuple):
    """Operations of matrix multiplications and convolutions; a multiply and an add are two.

    Attributes:
        total: with every turn of each loop whose length is known. Of one that is not (a sampler's,
            whose steps are an argument) there is one turn.
        once: with one turn of each loop. A compiler's own counts are of this kind.
    """

    total: float
    once: float


def count_flops(jaxpr: core.Jaxpr) -> Flops:
    """The operations of a traced program on all devices together, remat's included.

    Multiplications by a convolution's padding count, as usual in the literature.
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
    kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
    out_features = kernel[numbers.rhs_spec[0]]
    # Of groups the shapes tell: the kernel has the input features of one, the output has all images
    # or features.
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / out_features


_COUNTS = {"dot_general": _dot, "conv_general_dilated": _convolution}
