"""Images from trained weights: every image a function of (seed, its index) alone."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_distill.data.batches import batches_of, to_uint8
from diffusion_distill.devices import compiler
from diffusion_distill.devices.distributed import fetch
from diffusion_distill.devices.sharding import batched, is_split, place, replicated, rounded_up
from diffusion_distill.diffusion.discrete import diffusers_ddim
from diffusion_distill.diffusion.process import clip_x
from diffusion_distill.diffusion.samplers import (
    SAMPLERS,
    SamplerState,
    Step,
    ancestral,
    image_keys,
    image_noise,
    sample,
)
from diffusion_distill.errors import UserError
from diffusion_distill.models import build
from diffusion_distill.models.unet import UNet

DIFFUSERS = "ddim_diffusers"  # the sampler of a network with levels that is diffusers' own

# (params, z [B, H, W, C], keys [B], labels [B], num_steps, guidance) -> images [B, H, W, C] in
# [-1, 1].
SampleFn = Callable[[dict, jax.Array, jax.Array, jax.Array, int, float], jax.Array]

# Labels asked for: one for all images, several that are taken in turn, or None for all in turn.
Labels = int | Sequence[int] | np.ndarray | None


def make_sample_fn(
    model: UNet,
    config: ConfigDict,
    sampler: str,
    mesh: Mesh,
    platform: str | None = None,
    guided: bool = False,
) -> SampleFn:
    """The compiled sampler. Weights, num_steps and w are arguments: one program serves them all.

    Its loop runs inside the compiled program or around one compiled step, as
    config.runtime.sampler_loop says. x_hat is clipped to [-1, 1]. `platform`, where it is not the
    mesh's own, says whose form the program has. Where `guided`, a network that is not told w is
    asked with and without labels; otherwise w does nothing there.

    Raises:
        UserError: there is no sampler of that name, or the network is none that it is for.
    """
    step, schedule = _step(config, sampler), build.make_schedule(config)

    def bind(params, asked, shape):
        keys, labels, w = asked
        w = jnp.broadcast_to(w, labels.shape) if guided or model.told_guidance else None
        unclipped = build.make_denoiser(model, params, labels, config, guidance=w)

        def clipped(z, logsnr):
            return clip_x(unclipped(z, logsnr), z, logsnr)

        denoiser = unclipped if sampler == DIFFUSERS else clipped  # diffusers' step clips itself
        return denoiser, lambda i: image_noise(keys, i, shape)

    def ready(params):  # before the loop, as all steps read them
        return build.ready_weights(params, config.model.dtype, mesh)

    def whole_loop(params, z, asked, num_steps):
        denoiser, noise_fn = bind(ready(params), asked, z.shape[1:])
        return sample(step, denoiser, z, num_steps, schedule, noise_fn)

    def one_step(params, state, asked, i, num_steps):
        denoiser, noise_fn = bind(params, asked, state.z.shape[1:])
        return step(denoiser, state, i, num_steps, schedule, noise_fn)

    platform = platform or mesh.devices.flat[0].platform
    loop = config.runtime.sampler_loop
    whole, rows = replicated(mesh), batched(mesh)
    asked_in = rows, rows, whole
    options = compiler.options(platform)
    jit = functools.partial(jax.jit, out_shardings=rows, compiler_options=options)
    if loop == "inside" or (loop == "auto" and platform != "cpu"):
        compiled = jit(whole_loop, in_shardings=(None, rows, asked_in, whole))

        def loop_inside(params, z, keys, labels, num_steps, guidance=0.0):
            # A number becomes a host array, which every process may hand in; `plan` traces one.
            n = num_steps if isinstance(num_steps, jax.Array) else np.int32(num_steps)
            return compiled(params, z, (keys, labels, np.float32(guidance)), n)

        return loop_inside

    compiled_step = jit(one_step, in_shardings=(None, rows, asked_in, whole, whole))

    gather = jax.jit(ready, out_shardings=whole)

    def loop_outside(params, z, keys, labels, num_steps, guidance=0.0):
        params = gather(params) if is_split(mesh) else params
        state = SamplerState(z, jnp.zeros_like(z))
        n, asked = np.int32(num_steps), (keys, labels, np.float32(guidance))
        for i in range(num_steps, 0, -1):
            state = compiled_step(params, state, asked, np.int32(i), n)
        return state.z

    return loop_outside


def _step(config: ConfigDict, sampler: str) -> Step:
    """The step of a sampler; raises UserError as `make_sample_fn` does."""
    if sampler == "ancestral":
        return functools.partial(ancestral, variance=config.eval.ancestral_variance)
    if sampler in SAMPLERS:
        return SAMPLERS[sampler]
    if sampler != DIFFUSERS:
        raise UserError(f"sampler is {sampler!r}; there are {', '.join((*SAMPLERS, DIFFUSERS))}")
    if config.model.architecture != "unet2d":
        known = "network has no levels of diffusers' (config.model.architecture is not 'unet2d')"
        raise UserError(f"sampler is {sampler!r}, but this {known}")
    return diffusers_ddim(build.make_grid(config))


@functools.cache
def _starts(image_shape: tuple[int, int, int], mesh: Mesh) -> Callable:
    """(seed, indices [B]) -> the noise that images start from [B, H, W, C], their keys [B]."""

    def start(seed, indices):
        keys = image_keys(seed, indices)
        return image_noise(keys, 0, image_shape), keys

    return jax.jit(start, in_shardings=replicated(mesh), out_shardings=batched(mesh))


_to_uint8 = jax.jit(to_uint8)


@dataclasses.dataclass(frozen=True)
class SampleProgram:
    """A compiled sampler: all weights of one network, and all numbers of steps, share it."""

    sample_fn: SampleFn  # of `make_sample_fn`
    image_shape: tuple[int, int, int]  # (H, W, C) of the images
    num_classes: int  # labels that the network knows; 0 where it has none
    mesh: Mesh
    batch_size: int  # images at once, at the most
    guidance: tuple[float, float] | None = None  # range of w; None where there is no guidance
    max_steps: int | None = None  # of sampling; None for no bound


def make_sample_program(
    config: ConfigDict,
    image_shape: tuple[int, int, int],
    num_classes: int,
    sampler: str,
    mesh: Mesh,
    guided: bool = False,
) -> SampleProgram:
    """The compiled sampler of a config's network, for data of this shape and so many labels.

    For `guided` see `make_sample_fn`; a network that is told w needs it not.

    Raises:
        UserError: there is no sampler of that name.
    """
    model = build.build_unet(config, image_shape[-1], num_classes)
    sample_fn = make_sample_fn(model, config, sampler, mesh, guided=guided)
    told = tuple(config.model.guidance)
    guidance = told or ((0.0, math.inf) if guided else None)
    size = config.runtime.sampler_batch_size
    bound = config.scheduler.num_train_timesteps if sampler == DIFFUSERS else None
    known = model.num_classes, mesh, size, guidance, bound
    return SampleProgram(sample_fn, tuple(image_shape), *known)


def checked_guidance(guidance: float | None, known: tuple[float, float] | None) -> float:
    """The w to sample with: the one that is asked for, or for None the least that is known.

    Args:
        known: the range of w that a network knows; None where it knows no guidance.

    Raises:
        UserError: w is out of range, or there is no guidance.
    """
    if guidance is None:
        return known[0] if known else 0.0
    if known is None and guidance:
        taught = "trained with config.teacher.label_dropout, or matched with config.match.guidance"
        raise UserError(f"guidance is {guidance}; this network has none: it was not {taught}")
    if known and not known[0] <= guidance <= known[1]:
        told = f"from {known[0]}" + (f" to {known[1]}" if known[1] < math.inf else "")
        raise UserError(f"guidance is {guidance}; for this network it must be {told}")
    return float(guidance)


class Sampler:
    """Images from one network in `num_steps` steps; `SampleProgram` has its other attributes."""

    def __init__(
        self, program: SampleProgram, params: dict, num_steps: int, guidance: float | None = None
    ):
        """`guidance` is w, 0 for none; None for the least that the network knows.

        Raises UserError where it knows no such w, or the sampler takes fewer steps.
        """
        if program.max_steps is not None and num_steps > program.max_steps:
            levels = f"{DIFFUSERS} takes at most one for each of {program.max_steps} levels"
            raise UserError(f"num_steps is {num_steps}; {levels}")
        self.num_steps, self.guidance = num_steps, checked_guidance(guidance, program.guidance)
        self.image_shape, self.num_classes = program.image_shape, program.num_classes
        self._program, self._params, self._mesh = program, params, program.mesh
        self._start = _starts(self.image_shape, self._mesh)

    @compiler.own_settings()
    def __call__(self, seed: int = 0, num_images: int = 64, labels: Labels = None) -> np.ndarray:
        """uint8 images [N, H, W, C]; image n depends on (seed, n) and its label alone.

        For `labels` see `image_labels`.

        Raises:
            UserError: an argument is out of range; a seed is from 0 to 2**31 - 1.
        """
        labels = self.checked_labels(seed, num_images, labels)
        return self._in_batches(lambda indices: self.on_devices(seed, indices, labels), num_images)

    @compiler.own_settings()
    def on_devices(self, seed: int, indices: np.ndarray, labels: np.ndarray) -> jax.Array:
        """The images of these indices, uint8 [B, H, W, C], on the devices and split over them.

        Args:
            indices: int [B], B a multiple of the devices; see `batch_size`.
            labels: of all images, int32 [N], by index; see `image_labels`.
        """
        z, keys = self._start(seed, indices)
        return _to_uint8(self._images(z, keys, labels[indices]))

    def fingerprint(self) -> str:
        """A sha256 that tells the weights from any others."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self._params):
            digest.update(np.ascontiguousarray(fetch(leaf)).data)
        return digest.hexdigest()

    def batch_size(self, num_images: int) -> int:
        """How many of num_images to sample at once: a multiple of the devices."""
        return rounded_up(min(self._program.batch_size, num_images), self._mesh)

    def checked_labels(self, seed: int, num_images: int, labels: Labels = None) -> np.ndarray:
        """The labels of the images that a call with these arguments gives, int32 [N].

        Raises:
            UserError: an argument is out of range.
        """
        if num_images < 1:
            raise UserError(f"num_images is {num_images}; it must be at least 1")
        if not 0 <= seed < 2**31:
            raise UserError(f"seed is {seed}; it must be from 0 to 2**31 - 1")
        return self.image_labels(num_images, labels)

    @compiler.own_settings()
    def from_noise(self, z: np.ndarray, labels: Labels = None) -> np.ndarray:
        """float32 images [N, H, W, C] in [-1, 1] from noise z [N, H, W, C] of the caller's own.

        A stochastic sampler draws its further noise as for seed 0.

        Raises:
            UserError: z has another shape, or a label is out of range.
        """
        z = np.asarray(z, np.float32)
        if z.ndim != 4 or z.shape[1:] != self.image_shape or not len(z):
            expected = ", ".join(map(str, self.image_shape))
            raise UserError(f"noise has shape {z.shape}; it must be [N, {expected}]")
        labels = self.image_labels(len(z), labels)

        def batch_fn(indices):
            rows = place(z[indices], batched(self._mesh))
            return self._images(rows, self._start(0, indices)[1], labels[indices])

        return self._in_batches(batch_fn, len(z))

    def image_labels(self, num_images: int, labels: Labels = None) -> np.ndarray:
        """The label of each of N images: int32 [N], all 0 for a network without labels.

        `labels` is one for all; or several, taken in turn (image n gets labels[n % len(labels)]);
        or None, for all that the network knows in turn.

        Raises:
            UserError: a label is out of range, or the network has none.
        """
        if labels is None:
            labels = np.arange(max(self.num_classes, 1))
        elif not self.num_classes:
            raise UserError("labels were given, but this network was trained without")
        labels = np.atleast_1d(np.asarray(labels))
        if labels.ndim != 1 or not labels.size or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"labels must be one integer or a list of them, not {labels!r}")
        bad = [int(n) for n in labels if not 0 <= n < max(self.num_classes, 1)]
        if bad:
            raise UserError(f"label {bad[0]} is out of range 0 to {self.num_classes - 1}")
        return np.resize(labels, num_images).astype(np.int32)

    def _images(self, z: jax.Array, keys: jax.Array, labels: np.ndarray) -> jax.Array:
        """float32 [B, H, W, C] of one batch, on the devices."""
        labels = place(labels, batched(self._mesh))
        steps, w = self.num_steps, self.guidance
        return self._program.sample_fn(self._params, z, keys, labels, steps, w)

    def _in_batches(self, batch_fn, num_images: int) -> np.ndarray:
        """Images of indices 0 to N - 1, on the host; batch_fn(indices) gives a batch of them."""
        images = [batch_fn(i) for i in batches_of(num_images, self.batch_size(num_images))]
        return np.concatenate([fetch(x) for x in images])[:num_images]
