"""CIFAR-10 in one accelerator-hour: a leaner teacher, then 64 -> 32 -> ... -> 2 -> 1 steps.

    python -m diffusion_distill.data.prepare --dataset=cifar10 --out=data/cifar10
    python -m diffusion_distill.main --config=configs/cifar10_hour.py --workdir=runs/cifar10_hour

For those who have no pod: one current accelerator (an H200, say) with 16 GB or more.

Planned, not measured: at 150 TFLOP a second in bfloat16 the teacher's 24,000 updates (0.25 EFLOP)
take 27 minutes and the six rounds (0.18 EFLOP) 20; the rest is for compilation and for measuring
10,000 images of each stage. What comes out is not known yet: expect worse than the paper's 3.00 at
4 steps, whose teacher saw 17 times as many images with 2.6 times the computation for each.

What differs from the paper, and why:
- a network of 42.9 M parameters and 13.3 GFLOP forward, most of them at low resolution, in
  bfloat16, where the paper's has 60.0 M and 34 GFLOP at full resolution;
- v with SNR+1, whose loss settles in far fewer updates than that of x with truncated SNR (tried on
  the digits, RESULTS.md), and which the paper found as good after distillation;
- batches of 256, learning rates that fall to 0, and shorter averages, for so few updates;
- the chain begins at 64 steps, where DDIM on this teacher has little left to gain.

`:tiny` runs the same code in minutes on two cores.
"""

from diffusion_distill import paper


def get_config(variant: str = ""):
    config = paper.cifar10()
    config.diffusion.parameterization = "v"
    config.diffusion.weighting = "snr_plus_one"

    config.model.channels = 128
    config.model.channel_multipliers = (1, 2, 2, 2)
    config.model.num_blocks = 2
    config.model.emb_channels = 512
    config.model.attention_resolutions = (16,)
    config.model.dtype = "bfloat16"

    config.train.batch_size = 256

    config.teacher.updates = 24_000
    config.teacher.learning_rate = 4e-4
    config.teacher.lr_schedule = "linear"
    config.teacher.ema_decay = 0.9995
    config.teacher.dropout = 0.1

    config.distill.start_steps = 64
    config.distill.updates = 1_400
    config.distill.updates_last_rounds = 2_400
    config.distill.learning_rate = 2e-4
    config.distill.ema_decay = 0.998

    config.eval.num_images = 10_000
    config.eval.metrics = ("fd",)
    config.eval.baselines = ("ddim",)
    if variant == "fast":
        raise ValueError("this config has the variant tiny, not fast")
    return paper.with_variant(config, variant)
