"""A chain from a folder that diffusers' save_pretrained wrote: UNet2DModel, DDPM or DDIM pipeline.

    python -m diffusion_distill.main --config=configs/from_diffusers.py:FOLDER --workdir=runs/x \\
        --config.data.name=folder --config.data.path=IMAGES

Network, image size, labels, levels of noise and what is predicted are read from FOLDER; a network
that predicts eps is matched into one that predicts v first. You give the data that it was trained
on, and the budget: --config.match.updates=, --config.distill.updates= and the like.

Hardware: of the network; CPU cores will do for 32 channels at 16 pixels.

Time: hours to days; ask `python -m diffusion_distill.plan`. Not measured.

Result: not measured here.
"""

from diffusion_distill.config import base
from diffusion_distill.interop import diffusers


def get_config(folder: str = ""):
    if not folder:
        raise ValueError("name the folder: configs/from_diffusers.py:FOLDER")
    config = base()
    teacher = diffusers.describe(folder)
    height, width, channels = teacher.image_shape
    for section in ("model", "unet2d", "scheduler", "diffusion"):
        config[section] = teacher.config[section]  # all that the folder says
    if height == width:
        config.data.image_size = height  # what its network takes
    if channels in (1, 3):
        config.data.channels = channels  # the same
    config.data.name = "folder"  # your images; any other source will do

    if config.diffusion.parameterization == "eps":
        config.diffusion.parameterization = "v"  # students that predict eps fail at few steps
        config.diffusion.weighting = "snr_plus_one"  # the loss of v
        config.match.updates = 20_000  # to learn v from eps: as the last rounds
        config.match.ema_decay = 0.999  # an average over 1,000 updates, with nothing of its start

    config.train.batch_size = 64  # a guess at what most memories hold
    config.distill.teacher = folder  # whose weights are read and copied once
    config.distill.start_steps = 64  # more gains little, and rounds cost
    config.distill.first_round_solver = "heun"  # 64 steps of DDIM are too few (RESULTS.md)
    config.distill.lr_schedule = "constant"  # better on CIFAR-10, with an average (RESULTS.md)
    config.distill.ema_decay = 0.999  # an average over 1,000 updates, a tenth of a round
    config.distill.updates = 10_000  # a fifth of the paper's, for a start
    config.distill.updates_last_rounds = 20_000  # the same of its 100,000
    config.eval.num_images = 10_000  # a fifth of the usual, for time
    config.eval.baselines = ("ddim_diffusers", "ddim")  # what diffusers draws at as many steps
    return config
