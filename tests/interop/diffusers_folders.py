"""Folders that diffusers writes, of tiny networks with random weights; torch is imported late."""

import sys

import numpy as np
import pytest

# Forms of UNet2DModel, 16x16 pixels, that differ in each of its fields; `mixed` in most of them.
NETWORKS = {
    "plain": {},
    "mixed": {
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 4,
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "downsample_padding": 0,
        "attention_head_dim": 16,
        "num_class_embeds": 5,
        "time_embedding_dim": 48,
        "freq_shift": 1,
        "norm_eps": 1e-3,
        "sample_size": (8, 16),
    },
    "scale_shift": {"resnet_time_scale_shift": "scale_shift", "norm_eps": 1e-3},
    "attention_groups": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "padding_0": {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1},
    "resnet_resampling": {"downsample_type": "resnet", "upsample_type": "resnet"},
    "resnet_blocks": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "block_out_channels": (32, 64, 64),
    },
    "heads": {"attention_head_dim": 16, "layers_per_block": 2, "mid_block_scale_factor": 1.5},
    "one_head": {"attention_head_dim": None, "time_embedding_dim": 48, "norm_num_groups": 16},
    "no_middle": {"add_attention": False, "center_input_sample": True, "act_fn": "swish"},
    "labels": {"num_class_embeds": 5},
    "learned": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "grey": {"in_channels": 1, "out_channels": 1},
}

# Arguments of DDIMScheduler that differ in each, so that every value of each is there.
LEVELS = {
    "linear": {},
    "zero_snr": {
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "clip_sample_range": 1.5,
    },
    "scaled_linear": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "steps_offset": 1,
        "set_alpha_to_one": False,
    },
    "cosine": {
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
        "timestep_spacing": "linspace",
        "clip_sample": False,
    },
    "trained_betas": {
        "trained_betas": [0.001 + 0.05 * (k / 200) ** 2 for k in range(200)],
        "num_train_timesteps": 200,
        "prediction_type": "sample",
        "timestep_spacing": "trailing",
        "set_alpha_to_one": False,
    },
    "zero_snr_eps": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    "trailing_eps": {"timestep_spacing": "trailing", "clip_sample": False, "beta_end": 0.006},
}


def package():
    """The package diffusers; the test is skipped where it is not.

    It has no need of torchvision, but cannot be imported beside one that was built for another
    torch.
    """
    pytest.importorskip("torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchvision", None)
        return pytest.importorskip("diffusers")


def network(**fields):
    """A UNet2DModel of 32 channels for 16x16 pixels."""
    diffusers = package()
    import torch

    torch.manual_seed(0)
    given = {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        **fields,
    }
    model = diffusers.UNet2DModel(**given).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:  # which start as ones and zeros
                weight.add_(0.1 * torch.randn_like(weight))
    return model


def pipeline(path, fields=None, **levels):
    """Writes a DDIM pipeline of a network of one resolution to a folder; returns it."""
    diffusers = package()
    import torch

    small = {
        "sample_size": 8,
        "block_out_channels": (32,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    }
    model = network(**small, **(fields or {}))
    with torch.no_grad():
        # A float32 error in eps, 1e-6 of it, counts sigma / alpha times in x: 60 times and more.
        model.conv_out.weight.mul_(0.3)
    made = diffusers.DDIMPipeline(model, diffusers.DDIMScheduler(**levels))
    made.set_progress_bar_config(disable=True)
    made.save_pretrained(path)
    return made


def output(model, z, level, labels=None):
    """What a network of diffusers gives for z [B, H, W, C] at a level: [B, H, W, C]."""
    import torch

    with torch.no_grad():
        x = torch.from_numpy(np.moveaxis(z, -1, 1).copy())
        known = None if labels is None else torch.from_numpy(labels)
        return np.moveaxis(model(x, level, known).sample.numpy(), 1, -1)


def images(made, num_steps, count=2, **given):
    """(noise, the images in [-1, 1] that a pipeline makes of it), each [B, H, W, C]."""
    import torch

    fields = made.unet.config
    size = (fields.sample_size,) * 2 if isinstance(fields.sample_size, int) else fields.sample_size
    z = torch.randn((count, fields.in_channels, *size), generator=torch.Generator().manual_seed(3))
    result = made(
        count,
        torch.Generator().manual_seed(3),
        num_inference_steps=num_steps,
        output_type="np",
        **given,
    ).images
    return np.moveaxis(z.numpy(), 1, -1), 2.0 * result - 1.0
