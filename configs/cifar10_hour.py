"""CIFAR-10 in one accelerator-hour: a leaner teacher, then 64 -> 32 -> ... -> 2 -> 1 steps.

    python -m diffusion_distill.data.prepare --dataset=cifar10 --out=data/cifar10
    python -m diffusion_distill.main --config=configs/cifar10_hour.py --workdir=runs/cifar10_hour

For those who have no pod: one current accelerator.

Hardware: one H200, say. Nothing here has run on one yet.

Time: one hour; planned, not measured. At 150 TFLOP a second in bfloat16 the teacher's 24,000
updates (0.25 EFLOP) take 27 minutes and the six rounds (0.18 EFLOP) 20; the rest is for compilation
and for measuring 10,000 images of each stage.

Result: not measured here. The paper's FID of 3.00 at 4 steps is of a teacher that saw 17 times as
many images (102.4 against 6.1 million) with 2.6 times the computation for each.

What differs from the paper, and why:
- a network of 42.9 M parameters and 13.3 GFLOP forward, most of them at low resolution, in
  bfloat16, where the paper's has 60.0 M and 34 GFLOP at full resolution;
- v with SNR+1, whose loss settles in far fewer updates than that of x with truncated SNR (tried on
  the digits, RESULTS.md), and which the paper found as good after distillation;
- batches of 256, a teacher's learning rate that falls to 0, students' that stays, and shorter
  averages, for so few updates;
- the chain begins at 64 steps, from which its first round goes by Heun's method.

`:tiny` runs the same code in minutes on two cores.
"""

from diffusion_distill import paper


def get_config(variant: str = ""):
    config = paper.cifar10()
    config.diffusion.parameterization = "v"  # settles in fewer updates than x (above)
    config.diffusion.weighting = "snr_plus_one"  # the loss of v

    config.model.channels = 128  # half of the paper's
    config.model.channel_multipliers = (1, 2, 2, 2)  # down to 4 pixels, where a layer is cheap
    config.model.num_blocks = 2  # the paper's has 3
    config.model.emb_channels = 512  # 4 times channels, as in the paper's
    config.model.attention_resolutions = (16,)  # the paper has 8, too; 16 sees enough for less time
    config.model.dtype = "bfloat16"  # weights, softmax, normalisation and output stay float32

    config.train.batch_size = 256  # twice the paper's, for an accelerator that wants work

    config.teacher.updates = 24_000  # 6.1 million images, 123 epochs
    config.teacher.learning_rate = 4e-4  # twice the paper's, for twice the batch
    config.teacher.lr_schedule = "linear"  # to 0: it settles what so few updates leave open
    config.teacher.ema_decay = 0.9995  # an average over 2,000 updates
    config.teacher.dropout = 0.1  # half of the paper's, for a seventeenth of its epochs

    config.distill.start_steps = 64  # six rounds: what an hour allows
    config.distill.first_round_solver = "heun"  # won on two cores' CIFAR-10 (RESULTS.md)
    config.distill.lr_schedule = "constant"  # better there than falling (RESULTS.md)
    config.distill.updates = 1_400  # a round
    config.distill.updates_last_rounds = 2_400  # the rounds to 2 and to 1, the hardest
    config.distill.learning_rate = 2e-4  # four times the paper's, for rounds so short
    config.distill.ema_decay = 0.998  # an average over 500 updates

    config.eval.num_images = 10_000  # 50,000 of each stage would take the hour's last minutes
    config.eval.metrics = ("fd",)  # FID alone, for time
    config.eval.baselines = ("ddim",)  # what students must beat; ancestral would double their time
    return paper.with_variant(config, variant, known=("float32", "tiny"))
