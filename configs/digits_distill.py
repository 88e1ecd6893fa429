"""Handwritten digits, 8x8 pixels, with labels: a teacher, then 32 -> 16 -> 8 -> 4 -> 2 -> 1 steps.

    python -m diffusion_distill.main --config=configs/digits_distill.py --workdir=runs/digits

Real images (the 1,797 that scikit-learn ships), no download. On two CPU cores it takes under four
minutes and 1.5 GB. Measured there (RESULTS.md), fd_pixels1k_train: teacher 0.30 at 32 steps,
students 0.32 / 0.33 / 0.35 / 0.39 at 8 / 4 / 2 / 1 steps, where the teacher with DDIM has 0.47 /
0.83 / 2.07 / 6.08.

`:tiny` runs the same code in half a minute and learns nothing: it is for tests.
"""

from diffusion_distill.config import base


def get_config(variant: str = ""):
    config = base()
    config.data.name = "digits"

    config.diffusion.parameterization = "v"
    config.diffusion.weighting = "snr_plus_one"

    config.model.channels = 32
    config.model.channel_multipliers = (1, 1)
    config.model.num_blocks = 1
    config.model.emb_channels = 128
    config.model.attention_resolutions = (4,)
    config.model.num_groups = 8
    config.model.class_conditional = True

    config.train.batch_size = 32
    config.train.checkpoint_every = 500

    config.teacher.updates = 1200
    config.teacher.learning_rate = 2e-3
    config.teacher.warmup = 50
    config.teacher.lr_schedule = "linear"
    config.teacher.ema_decay = 0.99
    config.teacher.weight_decay = 0.0
    config.teacher.dropout = 0.0

    config.distill.start_steps = 32
    config.distill.updates = 200
    config.distill.updates_last_rounds = 300
    config.distill.learning_rate = 1e-3
    config.distill.ema_decay = 0.98

    config.eval.num_images = 1000
    config.eval.label_agreement = True

    if variant == "tiny":
        config.model.channels = 8
        config.model.emb_channels = 16
        config.train.batch_size = 16
        config.train.checkpoint_every = 4
        config.teacher.updates = 12
        config.distill.start_steps = 4
        config.distill.updates = 6
        config.distill.updates_last_rounds = 6
        config.eval.num_images = 100
        config.eval.grid_images = 10
    elif variant:
        raise ValueError(f"this config has the variant tiny, not {variant}")
    return config
