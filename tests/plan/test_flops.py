"""Operations counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from diffusion_distill.plan.flops import count_flops


def flops(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return count_flops(jax.jit(function).trace(*arguments).jaxpr.jaxpr)


def convolution(x, w, groups=1):
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def test_a_matrix_product():
    assert flops(lambda a, b: a @ b, (3, 5), (5, 7)) == (2 * 3 * 5 * 7,) * 2
    batched = flops(lambda a, b: jnp.einsum("bqhd,bkhd->bhqk", a, b), (2, 4, 3, 8), (2, 6, 3, 8))
    assert batched.total == 2 * 2 * 3 * 4 * 6 * 8


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_and_its_gradients(groups):
    shapes = (2, 8, 8, 4), (3, 3, 4 // groups, 6)
    pairs = 3 * 8 - 2  # of an output and a kernel's element along an axis; two are in the padding
    forward = 2 * pairs**2 * (2 * 6) * (4 // groups)
    assert flops(lambda x, w: convolution(x, w, groups), *shapes).total == forward
    squares = jax.grad(lambda x, w: (convolution(x, w, groups) ** 2).sum(), (0, 1))
    assert flops(squares, *shapes).total == 3 * forward  # one more for each of the two gradients


def test_a_convolution_with_strides():
    """Outputs at 0, 2, 4, 6 of 8 with a kernel of 3, padded by 1 on the left: one is outside."""

    def strided(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (2,), [(1, 0)], dimension_numbers=("NWC", "WIO", "NWC")
        )

    shapes = (1, 8, 1), (3, 1, 1)
    assert flops(strided, *shapes).total == 2 * (4 * 3 - 1)
    squares = jax.grad(lambda x, w: (strided(x, w) ** 2).sum(), (0, 1))
    assert flops(squares, *shapes).total == 3 * 2 * (4 * 3 - 1)


def test_loops():
    def in_loop(a):
        return jax.lax.scan(lambda c, _: (c @ a, None), a, length=7)[0]

    assert flops(in_loop, (4, 4)) == (7 * 2 * 64, 2 * 64)
    nested = flops(lambda a: jax.lax.scan(lambda c, _: (in_loop(c), None), a, length=3)[0], (4, 4))
    assert nested == (21 * 2 * 64, 2 * 64)

    def unknown(a, n):
        return jax.lax.fori_loop(0, n.astype(jnp.int32), lambda i, c: c @ a, a)

    assert flops(unknown, (4, 4), ()) == (2 * 64, 2 * 64)


def test_what_is_recomputed_counts():
    def loss(a, b):
        return jnp.sin(jnp.sin(a @ b) @ b).sum()

    plain, remat = (flops(jax.grad(f), (4, 4), (4, 4)) for f in (loss, jax.checkpoint(loss)))
    assert plain.total == 4 * 2 * 64
    assert remat.total > plain.total
