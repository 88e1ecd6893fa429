"""A step's memory is, as a rule, that of a step before."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from diffusion_distill.devices import memory
memory.keep()
import jax, jax.numpy as jnp

@jax.jit
def step(x):  # 64 MB that are written, and read backwards
    y = jnp.cos(x + jnp.arange(4000.0)[:, None] * jnp.arange(4000.0))
    return y @ y[::-1, 0]

def faults():  # pages that were asked for
    step(1.0).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

counts = [faults() for _ in range(41)]
print(sum(b - a > 1000 for a, b in zip(counts, counts[1:])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_most_steps_ask_the_system_for_no_memory():
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) <= 20  # of 40, which all would: 64 MB are 16,000 pages
