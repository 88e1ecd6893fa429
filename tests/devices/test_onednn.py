"""Convolutions by oneDNN are convolutions, and stand only where they can."""

import shutil

import jax
import numpy as np
import pytest

from diffusion_distill.devices import onednn
from diffusion_distill.plan.flops import count_flops

# Images, kernel, stride, padding; odd sizes, one channel, kernels that are not square, U-Net's own.
CASES = [
    ((2, 9, 8, 3), (3, 3, 3, 5), 1, ((1, 1), (1, 1))),
    ((2, 8, 8, 16), (3, 3, 16, 32), 2, ((0, 1), (0, 1))),
    ((1, 9, 9, 16), (1, 7, 16, 1), 1, ((0, 0), (3, 3))),
    ((3, 4, 4, 8), (1, 1, 8, 16), 1, ((0, 0), (0, 0))),
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
    assert program.as_text().count(f"@{onednn._TARGET}(") == 3  # it is oneDNN that is looked at
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


def test_programs_for_accelerators_are_as_without_it(used):
    x, kernel = values((1, 8, 8, 4), 0), values((3, 3, 4, 4), 1)

    def gradients(x, kernel):
        return jax.grad(lambda *a: onednn.convolution(*a).sum(), argnums=(0, 1))(x, kernel)

    text = jax.jit(gradients).trace(x, kernel).lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.convolution" in text
    assert onednn._TARGET not in text


def test_programs_for_several_devices_are_as_without_it(used):
    """XLA would not know how to divide the call."""
    mesh = jax.sharding.AbstractMesh((2,), ("data",))
    by_rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((2, 8, 8, 4), np.float32, sharding=by_rows)
    kernel = values((3, 3, 4, 4), 1)
    lowered = jax.jit(onednn.convolution).trace(x, kernel).lower(lowering_platforms=("cpu",))
    assert "stablehlo.convolution" in lowered.as_text()
    assert onednn._TARGET not in lowered.as_text()


def test_operations_are_counted_as_those_of_xlas(used, monkeypatch):
    x, kernel = values((2, 8, 8, 4), 0), values((3, 3, 4, 8), 1)

    def counted():
        def loss(*arguments):
            return onednn.convolution(*arguments, 2).sum()

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
