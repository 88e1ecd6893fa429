"""What benchmarks/peers.py compares: our network, and those of two packages in PyTorch."""

import contextlib
import dataclasses
import functools
import importlib.machinery
import sys
from collections.abc import Callable
from unittest import mock

import jax
from ml_collections import ConfigDict

from benchmarks.workload import Workload
from configs import cifar10_teacher
from diffusion_distill.errors import UserError


@dataclasses.dataclass(frozen=True)
class Contender:
    """One network, ready: each call does its work on a whole batch and waits for it.

    Attributes:
        parameters: how many it has.
        train: one training step.
        sample: a batch of images.
    """

    parameters: int
    train: Callable[[], None]
    sample: Callable[[], None]


def our_config(channels: int, num_blocks: int) -> ConfigDict:
    """The paper's CIFAR-10 config at another width and depth."""
    config = cifar10_teacher.get_config()
    config.model.channels, config.model.num_blocks = channels, num_blocks
    config.model.emb_channels = 4 * channels
    config.model.dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return config


def ours(channels: int, num_blocks: int, batch: int, num_steps: int) -> Contender:
    config = our_config(channels, num_blocks)
    config.train.batch_size = batch
    config.teacher.dropout = 0.0
    config.runtime.updates_per_call = 1  # as many as a step of the others
    work = Workload(config)
    stage = work.stages["teacher"]
    updating = work.updating(stage, work.compiled_update(stage).call)
    parameters = sum(p.size for p in jax.tree.leaves(work.params))
    return Contender(parameters, updating, work.sampling(num_steps, batch))


def diffusers(channels: int, num_blocks: int, batch: int, num_steps: int) -> Contender:
    import torch
    from diffusers import DDIMScheduler

    model = first_unet(channels, num_blocks)
    device, network, autocast = _on_device(model)
    scheduler = DDIMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")

    def loss(x):
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (len(x),), device=x.device)
        z, target = scheduler.add_noise(x, noise, t), scheduler.get_velocity(x, noise, t)
        return torch.nn.functional.mse_loss(network(z, t).sample.float(), target)

    @torch.inference_mode()
    def sample():
        scheduler.set_timesteps(num_steps)
        z = torch.randn(batch, 3, 32, 32, device=device)
        for t in scheduler.timesteps:
            with autocast():
                output = network(z, t).sample
            z = scheduler.step(output.float(), t, z).prev_sample
        z.cpu()

    return Contender(count(model), _torch_step(model, loss, batch, autocast), sample)


def lucidrains(channels: int, num_blocks: int, batch: int, num_steps: int) -> Contender:
    from denoising_diffusion_pytorch import GaussianDiffusion
    from denoising_diffusion_pytorch import denoising_diffusion_pytorch as module

    del num_blocks
    module.tqdm = lambda steps, **_: steps  # no bars
    model = second_unet(channels)
    device, network, autocast = _on_device(model)
    diffusion = GaussianDiffusion(
        model, image_size=32, sampling_timesteps=num_steps, objective="pred_v", auto_normalize=False
    ).to(device)
    diffusion.model = network

    def sample():
        with autocast():
            diffusion.sample(batch_size=batch).cpu()

    return Contender(count(model), _torch_step(model, diffusion, batch, autocast), sample)


def matching_width(wanted: int) -> int:
    """The width, a multiple of 8, at which the second peer has about as many parameters."""

    def parameters(width):
        return count(second_unet(width))

    width = 8
    while parameters(width + 8) < wanted:
        width += 8
    return min(width, width + 8, key=lambda w: abs(parameters(w) - wanted))


def first_unet(channels: int, num_blocks: int):
    """diffusers' network, as near to the paper's as its options allow."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=32,
        block_out_channels=(channels,) * 3,
        layers_per_block=num_blocks,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=channels,
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=32,
    )


def second_unet(channels: int):
    """denoising-diffusion-pytorch's network."""
    from denoising_diffusion_pytorch import Unet

    return Unet(
        channels,
        dim_mults=(1, 1, 1),
        full_attn=(False, True, True),
        attn_heads=1,
        attn_dim_head=channels,
    )


def count(model) -> int:
    """How many parameters a PyTorch model has."""
    return sum(p.numel() for p in model.parameters())


def _on_device(model):
    """The device, where the model then is; what to call in its place; a context to compute in."""
    import torch

    if not torch.cuda.is_available():
        return "cpu", model, contextlib.nullcontext
    autocast = functools.partial(torch.autocast, "cuda", torch.bfloat16)
    return "cuda", torch.compile(model.to("cuda")), autocast


def _torch_step(model, loss, batch: int, autocast) -> Callable[[], None]:
    """A training step as PyTorch's users write it, with the fused forms of what is around it."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    weights = list(model.parameters())
    average = [w.detach().clone() for w in weights]
    x = torch.rand(batch, 3, 32, 32, device=weights[0].device) * 2 - 1

    def step():
        with autocast():
            value = loss(x)
        value.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, [w.detach() for w in weights], 1e-4)
        value.item()

    return step


def check_installed() -> None:
    """Makes sure that the peers can be imported.

    Both import torchvision without a use for it here, and where its build does not match torch's,
    as with a torch for CPUs and PyPI's torchvision, that fails; then a stand-in takes its place.

    Raises:
        UserError: they are not installed.
    """
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("torch is not installed: pip install -e '.[peers]'") from None
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        _stand_in("torchvision", "transforms", "transforms.functional", "utils", "models")
    try:
        import denoising_diffusion_pytorch  # noqa: F401
        from diffusers import UNet2DModel  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install -e '.[peers]'") from None


def _stand_in(package: str, *modules: str) -> None:
    for name in [package, *(f"{package}.{module}" for module in modules)]:
        module = mock.MagicMock(name=name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__path__ = []
        sys.modules[name] = module
