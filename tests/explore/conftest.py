"""What tests of the page share."""

import pytest

from diffusion_distill.explore.world import World


@pytest.fixture(scope="session")
def world(finished):
    """Of the tiny run: a teacher of 4 steps, students of 2 and 1."""
    return World(finished[0])
