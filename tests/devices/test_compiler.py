"""What the compiler is told on CPU does what it is there for, and programs are kept and loaded."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distill.devices import compiler
from diffusion_distill.models.layers import materialize

pytestmark = pytest.mark.usefixtures("optimized")
OPTIONS = compiler.options("cpu")


def compiled(function, *arguments):
    return jax.jit(function, compiler_options=OPTIONS).lower(*arguments).compile()


def test_accelerators_keep_their_defaults():
    assert compiler.options("gpu") is None
    assert compiler.options("tpu") is None


def test_this_jaxlib_knows_all_options():
    assert OPTIONS == compiler._CPU_OPTIONS


def test_an_option_that_is_not_known_is_left_out(monkeypatch):
    monkeypatch.setitem(compiler._CPU_OPTIONS, "xla_no_such_option", "true")
    compiler.options.cache_clear()
    try:
        assert compiler.options("cpu") == OPTIONS
    finally:
        compiler.options.cache_clear()


def test_what_is_materialized_is_computed_once():
    def read_twice(x):
        y = materialize(jnp.exp(x))
        return y.sum(axis=0), y.T.copy()

    assert compiled(read_twice, jnp.ones((64, 64))).as_text().count("exponential(") == 1


def test_rematerialisation_saves_memory():
    def memory(wrap):
        def loss(x):
            for _ in range(8):
                x = wrap(lambda x: jnp.sin(jnp.exp(jnp.sin(x)) @ jnp.eye(256)))(x)
            return x.sum()

        return compiled(jax.grad(loss), jnp.ones((2048, 256))).memory_analysis().temp_size_in_bytes

    assert memory(jax.checkpoint) < 0.8 * memory(lambda function: function)


def test_convolutions_and_their_gradients_are_exact_to_rounding():
    rng = np.random.default_rng(0)
    x, kernel, weight = (
        rng.normal(size=s) for s in [(8, 16, 16, 32), (3, 3, 32, 48), (8, 16, 16, 48)]
    )

    def loss(x, kernel, weight):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        return (y * weight).sum(), y

    gradients = jax.grad(loss, argnums=(0, 1), has_aux=True)
    got = compiled(gradients, *map(jnp.float32, (x, kernel, weight)))(
        *map(jnp.float32, (x, kernel, weight))
    )
    with jax.enable_x64(True):
        exact = gradients(*map(jnp.float64, (x, kernel, weight)))
    jax.tree.map(
        # Sums of up to 2,048 products of numbers of size 1, each off by up to 6e-8 of itself.
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        got,
        exact,
    )


PROGRAM = """
import sys
import jax, numpy
from diffusion_distill.devices import compiler
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("cache_hits")))
compiler.keep_programs()
print(jax.jit(lambda x: (x @ x).sum())(numpy.eye(100, dtype="float32")))
print(sum(hits), "hits", file=sys.stderr)
"""


def run_program(tmp_path, **environment):
    names = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    env = {k: v for k, v in os.environ.items() if k not in names}
    env |= {"DIFFUSION_DISTILL_CACHE": str(tmp_path / "cache"), **environment}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout == "100.0\n"
    return done.stderr


def kept(tmp_path):
    return [f for f in (tmp_path / "cache").rglob("*-cache") if "jit" in f.name]


def test_programs_are_kept_and_damage_to_them_does_no_harm(tmp_path):
    assert run_program(tmp_path).endswith("0 hits\n")
    files = kept(tmp_path)
    assert files and {f.parent.parent.name for f in files} == {"compiled"}
    loaded = run_program(tmp_path)
    assert loaded.endswith(" hits\n") and not loaded.endswith("0 hits\n")
    for file in files:
        file.write_bytes(file.read_bytes()[:-20])
    run_program(tmp_path)


@pytest.mark.parametrize("off", ["JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"])
def test_what_jax_was_told_stands(tmp_path, off):
    value = "false" if "ENABLE" in off else str(tmp_path / "elsewhere")
    run_program(tmp_path, **{off: value})
    assert not kept(tmp_path)


def test_where_there_is_no_place_nothing_is_kept_or_said(tmp_path):
    (tmp_path / "cache").touch()
    assert run_program(tmp_path) == "0 hits\n"
