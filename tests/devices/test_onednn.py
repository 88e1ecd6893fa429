"""Convolutions and products by oneDNN are what they should be, and stand only where they can."""

import shutil

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from diffusion_distill.devices import onednn
from diffusion_distill.plan.flops import count_flops
from tests.models.test_unet import SMALL, inputs, random_params

# Images, kernel, stride, padding; odd sizes, one channel, kernels that are not square, U-Net's own.
CASES = [
    ((2, 9, 8, 3), (3, 3, 3, 5), 1, ((1, 1), (1, 1))),
    ((2, 8, 8, 16), (3, 3, 16, 32), 2, ((0, 1), (0, 1))),
    ((1, 9, 9, 16), (1, 7, 16, 1), 1, ((0, 0), (3, 3))),
    ((3, 4, 4, 8), (1, 1, 8, 16), 1, ((0, 0), (0, 0))),
]
# What attention and its gradient multiply, layers of one axis and of two, and their gradients.
PRODUCTS = [
    ("btnh,bsnh->bnts", (2, 5, 3, 8), (2, 7, 3, 8)),
    ("bnts,bsnh->btnh", (2, 3, 5, 7), (2, 7, 3, 8)),
    ("bnts,bsnh->bnth", (2, 1, 5, 7), (2, 7, 1, 8)),
    ("bnts,btnh->bsnh", (2, 3, 5, 7), (2, 5, 3, 8)),
    ("bhwi,io->bhwo", (2, 3, 4, 5), (5, 6)),
    ("bti,inh->btnh", (2, 3, 4), (4, 2, 3)),
    ("btnh,nho->bto", (2, 3, 4, 5), (4, 5, 6)),
]
ROUNDING = {"float32": 2e-6, "bfloat16": 2**-8}  # of the largest value; sums are in float32


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A cache in which the library is, compiled once."""
    if not onednn._LIBRARY.exists():
        pytest.skip("the extra onednn is not installed")
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def used(compiled, monkeypatch):
    monkeypatch.setenv(onednn.ONEDNN, "1")
    monkeypatch.setattr(onednn, "_is_used", False)  # as it was, after the test
    onednn.use(compiled)
    assert onednn.is_used()


def float64(x, kernel, stride, padding):
    """The convolution by its definition: for each element of the kernel, a matrix product."""
    x = np.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = (
        (size - window) // stride + 1
        for size, window in zip(x.shape[1:3], kernel.shape[:2], strict=True)
    )
    y = np.zeros((x.shape[0], height, width, kernel.shape[3]))
    for i, j in np.ndindex(*kernel.shape[:2]):
        rows, columns = slice(i, i + stride * height, stride), slice(j, j + stride * width, stride)
        y += x[:, rows, columns][:, :height, :width] @ kernel[i, j]
    return y


def values(shape, seed, dtype="float32"):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def agree(found, wanted, rounding):
    assert found.shape == wanted.shape
    np.testing.assert_allclose(
        np.asarray(found, np.float64), wanted, rtol=0, atol=rounding * np.abs(wanted).max()
    )


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_and_its_gradients_are_the_definitions(used, case, dtype):
    x_shape, kernel_shape, stride, padding = case
    x, kernel = values(x_shape, 0, dtype), values(kernel_shape, 1, dtype)

    def both(x, kernel, gradient):
        y, back = jax.vjp(lambda *a: onednn.convolution(*a, stride, padding), x, kernel)
        return y, *back(gradient)

    exact = [np.asarray(array, np.float64) for array in (x, kernel)]
    wanted = float64(*exact, stride, padding)
    gradient = values(wanted.shape, 2, dtype)
    program = jax.jit(both).lower(x, kernel, gradient)
    assert program.as_text().count(f"@{onednn._target('convolve')}(") == 3  # it is oneDNN's
    y, x_gradient, kernel_gradient = program.compile()(x, kernel, gradient)
    assert y.dtype == x_gradient.dtype == kernel_gradient.dtype == dtype
    agree(y, wanted, ROUNDING[dtype])
    # A gradient is the linear map's transpose: in any direction it has the same inner product.
    given = np.asarray(gradient, np.float64)
    for found, at in ((x_gradient, 0), (kernel_gradient, 1)):
        arguments = list(exact)
        dense = np.zeros(exact[at].shape)
        for index in np.ndindex(*exact[at].shape):
            arguments[at] = np.zeros(exact[at].shape)
            arguments[at][index] = 1.0
            dense[index] = np.sum(float64(*arguments, stride, padding) * given)
        agree(found, dense, ROUNDING[dtype])


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("spec, x_shape, y_shape", PRODUCTS, ids=[spec for spec, *_ in PRODUCTS])
def test_a_product_and_its_gradients_are_the_sums_of_products(used, spec, x_shape, y_shape, dtype):
    x, y = values(x_shape, 0, dtype), values(y_shape, 1, dtype)
    exact = [np.asarray(array, np.float64) for array in (x, y)]
    wanted = np.einsum(spec, *exact)
    gradient = values(wanted.shape, 2, dtype)
    program = jax.jit(lambda *a: gradients(onednn.einsum, spec, *a)).lower(x, y, gradient)
    assert program.as_text().count(f"@{onednn._target('multiply')}(") == 3
    found = program.compile()(x, y, gradient)
    assert {array.dtype for array in found} == {x.dtype}
    given, (of_x, of_y, made) = np.asarray(gradient, np.float64), spec.replace("->", ",").split(",")
    by_x = np.einsum(f"{made},{of_y}->{of_x}", given, exact[1])
    by_y = np.einsum(f"{made},{of_x}->{of_y}", given, exact[0])
    for one, other in zip(found, (wanted, by_x, by_y), strict=True):
        agree(one, other, ROUNDING[dtype])


def gradients(einsum, spec, x, y, gradient):
    result, back = jax.vjp(lambda *a: einsum(spec, *a), x, y)
    return result, *back(gradient)


def test_a_sum_of_16_bit_products_is_given_in_32_bits(used):
    """Rounded to 16 bits on the way it would be off by 2^-9."""
    x, y = values((1, 4, 1, 300), 0, "bfloat16"), values((1, 4, 1, 300), 1, "bfloat16")
    found = jax.jit(lambda *a: onednn.einsum("btnh,bsnh->bnts", *a, "float32"))(x, y)
    assert found.dtype == np.float32
    exact = (np.asarray(array, np.float64) for array in (x, y))
    agree(found, np.einsum("btnh,bsnh->bnts", *exact), 2e-6)


@pytest.mark.parametrize(
    "dimensions, spec, x_shape, y_shape",
    [
        ((((2,), (0,)), ((), ())), "abk,kn->abn", (2, 3, 4), (4, 5)),
        ((((2, 3), (0, 1)), ((), ())), "abkl,kln->abn", (2, 3, 4, 5), (4, 5, 6)),
        ((((1,), (1,)), ((0,), (0,))), "bkm,bkn->bmn", (2, 3, 4), (2, 3, 5)),
    ],
    ids=["one axis", "two axes", "a batch"],
)
def test_a_layers_product_is_dot_general(used, dimensions, spec, x_shape, y_shape):
    x, y = values(x_shape, 0), values(y_shape, 1)
    wanted = np.einsum(spec, *(np.asarray(a, np.float64) for a in (x, y)))
    agree(onednn.dot_general(x, y, dimensions), wanted, 2e-6)


def test_a_network_by_it_is_the_network(used, monkeypatch):
    """With attention, shortcuts and resampling; by it, and by XLA."""
    arguments = inputs()
    params = random_params(SMALL, *arguments)

    def loss(params):
        return (SMALL.apply(params, *arguments) ** 2).sum()

    def gradient():
        return jax.jit(jax.grad(loss)).lower(params)

    by_it = gradient()
    assert by_it.as_text().count(onednn._target("multiply")) > 10
    monkeypatch.setattr(onednn, "_is_used", False)
    jax.clear_caches()
    found, wanted = (ravel_pytree(g.compile()(params))[0] for g in (by_it, gradient()))
    agree(found, np.asarray(wanted, np.float64), 1e-5)


def test_a_product_of_axes_that_lie_apart_is_xlas(used):
    """Rows b and c are one axis in the result, and two in the first factor."""
    x, y = values((2, 3, 4), 0), values((3, 5), 1)
    wanted = np.einsum("bkc,kn->bcn", *(np.asarray(a, np.float64) for a in (x, y)))
    jitted = jax.jit(lambda x, y: onednn.einsum("bkc,kn->bcn", x, y))
    assert onednn._target("multiply") not in jitted.lower(x, y).as_text()
    agree(jitted(x, y), wanted, 2e-6)


def convolved(x, kernel):
    return onednn.convolution(x, kernel), onednn.einsum("bhwi,hwio->bo", x, kernel)


def test_programs_for_accelerators_are_as_without_it(used):
    x, kernel = values((1, 8, 8, 4), 0), values((8, 8, 4, 4), 1)

    def grown(x, kernel):
        return jax.grad(lambda *a: sum(y.sum() for y in convolved(*a)), argnums=(0, 1))(x, kernel)

    text = jax.jit(grown).trace(x, kernel).lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.convolution" in text
    assert "stablehlo.dot_general" in text
    assert onednn._target("") not in text


def test_programs_for_several_devices_are_as_without_it(used):
    """XLA would not know how to divide the call."""
    mesh = jax.sharding.AbstractMesh((2,), ("data",))
    by_rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((2, 8, 8, 4), np.float32, sharding=by_rows)
    kernel = values((8, 8, 4, 4), 1)
    text = jax.jit(convolved).trace(x, kernel).lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.convolution" in text
    assert "stablehlo.dot_general" in text
    assert onednn._target("") not in text


def test_operations_are_counted_as_those_of_xlas(used, monkeypatch):
    x, kernel = values((2, 8, 8, 4), 0), values((3, 3, 4, 8), 1)

    def counted():
        def loss(*arguments):
            y = onednn.convolution(*arguments, 2)
            return onednn.einsum("bhwc,bhwd->bcd", y, y).sum()

        return count_flops(
            jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1)))(x, kernel).jaxpr
        )

    with_it = counted()
    monkeypatch.setattr(onednn, "_is_used", False)
    assert with_it == counted()
    assert with_it.total > 0


def test_it_is_left_out_where_it_is_not_wanted(compiled, monkeypatch):
    monkeypatch.setattr(onednn, "_is_used", False)
    monkeypatch.setenv(onednn.ONEDNN, "0")
    onednn.use(compiled)
    assert not onednn.is_used()


def test_without_the_extra_nothing_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(onednn, "_is_used", False)
    monkeypatch.setenv(onednn.ONEDNN, "1")
    monkeypatch.setattr(onednn, "_LIBRARY", tmp_path / "libdnnl.so")
    onednn.use(tmp_path)
    assert not onednn.is_used()
    assert not caplog.text


def test_without_a_compiler_convolutions_stay_and_it_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(onednn, "_is_used", False)
    monkeypatch.setenv(onednn.ONEDNN, "1")
    monkeypatch.setattr(onednn, "_LIBRARY", tmp_path / "libdnnl.so")
    (tmp_path / "libdnnl.so").touch()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    onednn.use(tmp_path)
    assert not onednn.is_used()
    assert "there is no C++ compiler" in caplog.text
    x = values((1, 4, 4, 2), 0)
    assert onednn.convolution(x, values((3, 3, 2, 2), 1)).shape == x.shape
