"""What tests of the page share."""

import pytest

from diffusion_distill.explore.world import World


@pytest.fixture(scope="session")
def world(finished):
    """Of the tiny run: a teacher of 4 steps, students of 2 and 1."""
    return World(finished[0])


@pytest.fixture(scope="session")
def address(world):
    """Of the page, served as the command does."""
    pytest.importorskip("gradio", reason="gradio, of the extra explore, is not installed")
    from diffusion_distill.explore import page, serve

    return serve.start(page.build(world), "127.0.0.1", 0)[0]
