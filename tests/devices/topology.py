"""What a topology makes of ten updates of a teacher and ten of a student, or of a checkpoint.

    python -m tests.devices.topology JSON

does the jobs of a list [WHAT, OUT.npz, CHECKPOINTS, DEVICES, FSDP], one after another, on the first
so many devices of

    {"devices": of this process, "jobs": [...], "join": null or [PORT, PROCESSES, ID]}

Process 0 writes each OUT.npz. "train" leaves a checkpoint of the student in CHECKPOINTS/10;
"restore" saves it again as 11.
"""

import dataclasses
import json
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_distill.data.source import from_arrays
from diffusion_distill.devices import distributed
from diffusion_distill.devices.distributed import fetch
from diffusion_distill.devices.sharding import make_mesh, place, replicated
from diffusion_distill.generate import SampleProgram, Sampler, make_sample_fn
from diffusion_distill.models.build import abstract_params
from diffusion_distill.models.unet import dropout
from diffusion_distill.runs import checkpoints
from diffusion_distill.stages import plan
from diffusion_distill.training.feed import Feed
from diffusion_distill.training.optimizer import make_optimizer
from diffusion_distill.training.state import TrainState, abstract_state, init_student, init_teacher
from diffusion_distill.training.step import Recipe, Round
from diffusion_distill.training.update import make_update

SHAPE = (4, 4, 1)


class Small(nn.Module):
    """A network with one matrix that is large enough to be split, and others that are not."""

    dropout: float = 0.0
    num_classes: int = 10
    told_guidance: bool = False

    @nn.compact
    def __call__(self, z, logsnr, labels=None, dropout_keys=None):
        features = jnp.concatenate([z, z * logsnr[:, None, None, None] / 20], -1)
        h = nn.Dense(64, name="in")(features) + nn.Embed(10, 64)(labels)[:, None, None]
        h = nn.Dense(64, name="middle")(nn.swish(h))
        h = h if dropout_keys is None else dropout(h, self.dropout, dropout_keys, "h")
        return nn.Dense(1, name="out")(nn.swish(h))


def settings():
    from tests.conftest import tiny_config

    config = tiny_config()
    config.train.adam_eps = 1e-3  # large, so that a gradient near 0 stays a small step
    config.teacher.dropout = 0.1
    config.data.random_flip = True
    return config


def student_state(config, mesh):
    """Its ShapeDtypeStructs with shardings."""
    params = abstract_params(Small(), SHAPE, mesh)
    return abstract_state(params, make_optimizer(config, plan(config)[1]), mesh)


def train(config, mesh):
    """(the student's state, losses and batches of both stages)."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, *SHAPE), np.uint8)
    source = from_arrays(images, rng.integers(0, 10, 64))
    reads = []

    def read(indices):
        reads.append(len(indices))
        return source.read(indices)

    counted = dataclasses.replace(source, read=read)
    feed, teacher_params, kept = Feed(counted, mesh, "never"), None, {"losses": [], "images": []}
    for stage in plan(config)[:2]:
        optimizer = make_optimizer(config, stage)
        if teacher_params is None:
            key = place(jax.random.key(0), replicated(mesh))
            state = init_teacher(Small(), optimizer, key, SHAPE, mesh)
        else:
            state = init_student(teacher_params, optimizer, mesh)
        abstract = student_state(config, mesh)
        update = make_update(Recipe(Small(stage.dropout), config, stage, mesh), abstract)
        this_round = Round(np.int32(stage.num_steps), np.int32(stage.updates))
        key, this_round = place((jax.random.key(1), this_round), replicated(mesh))
        calls = feed.batches(0, stage.rng_id, 16, [(step, 1) for step in range(10)])
        for _, _, rows in calls:
            with jax.transfer_guard("disallow"):
                state, metrics = update(state, teacher_params, None, rows, key, this_round)
            kept["losses"].append(jax.device_get(metrics["loss"])[0])
            kept["images"].append(fetch(rows.images))
        teacher_params = state.ema_params
    return state, kept | {"reads": reads}


def sampled(config, mesh, params):
    """Images of the student, and noise of the caller's own made an image."""
    sample_fn = make_sample_fn(Small(), config, "ancestral", mesh)
    sampler = Sampler(SampleProgram(sample_fn, SHAPE, 10, mesh, 256), params, 3)
    noise = np.random.default_rng(1).normal(size=(10, *SHAPE))
    return {"samples": sampler(seed=5, num_images=10), "from_noise": sampler.from_noise(noise)}


def weights(state):
    """Every array of a state by its name, whole."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): fetch(leaf) for path, leaf in leaves}


def parts(state, mesh):
    """Into how many parts weights, their average and Adam's moments are split here."""
    trees = state.params, state.ema_params, state.opt_state[1].mu, state.opt_state[1].nu
    matrices = [tree["middle"]["kernel"] for tree in trees]
    return [m.size // m.addressable_shards[0].data.size for m in matrices]


def save(state, directory, step):
    writer = checkpoints.Writer(directory, kept=2)
    writer.save(step, state.trees(), {"seconds": 1.5})
    writer.close()


def do(what, out, directory, devices, fsdp):
    """One job, on the first so many devices, and what it leaves."""
    config, mesh = settings(), make_mesh(fsdp, jax.devices()[:devices])
    assert mesh.size == devices
    if what == "train":
        state, kept = train(config, mesh)
        kept |= sampled(config, mesh, state.ema_params)
        save(state, Path(directory), 10)
    else:
        whole = checkpoints.newest_whole(Path(directory), print)
        abstract = student_state(config, mesh)
        state, kept = TrainState.of_trees(whole.trees(abstract.trees())), {}
        save(state, Path(directory), whole.step + 1)
    kept |= {"parts": parts(state, mesh)} | weights(state)
    if distributed.is_main():
        np.savez(out, **kept)


def main(devices, jobs, join=None):
    jax.config.update("jax_num_cpu_devices", devices)
    if join:
        port, processes, number = join
        distributed.initialize(f"127.0.0.1:{port}", processes, number)
    for job in jobs:
        do(*job)
    distributed.leave()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
