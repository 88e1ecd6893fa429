"""CIFAR-10 with its labels on two CPU cores: a small teacher, then 64 -> 32 -> ... -> 2 -> 1 steps.

    python -m diffusion_distill.data.prepare --dataset=cifar10 --out=data/cifar10
    python -m diffusion_distill.main --config=configs/cifar10_small.py --workdir=runs/cifar10_small

Real images in colour for those who have no accelerator.

Hardware: two CPU cores and 4 GB of memory; best with the extra onednn, on a kind that has units
for bfloat16 (`amx_bf16` in /proc/cpuinfo).

Time: 1 hour 50 minutes on such cores, with other work beside; measured on 2026-11-28.

Result: measured there, fd_thumbnails500_train: 1.41 for the teacher in 64 steps, 1.22 for the
student in 4 and 1.27 in 1; the teacher in 4 steps of DDIM 14.05. FID of 5,000 images of the same:
64.4, 69.9, 86.2 and 104.3. Those students are in pretrained/.

What differs from the paper, and why:
- a network of 2.9 M parameters and 0.4 GFLOP forward, on patches of 2x2 pixels, where the paper's
  has 60.0 M and 34 GFLOP: two cores do 100 GFLOP a second or two;
- labels, so that there is less to learn for each;
- v with SNR+1, whose loss settles in far fewer updates than that of x with truncated SNR (tried on
  the digits, RESULTS.md), and which the paper found as good after distillation;
- a teacher's learning rate that falls to 0, students' that stays, and shorter averages, for so few
  updates (RESULTS.md has what was tried);
- the chain begins at 64 steps, so that six rounds do, the first of them by Heun's method, since
  64 steps of DDIM are too few (RESULTS.md);
- stages are measured on thumbnails, since Inception takes 17 images a second on such a machine. FID
  afterwards: `evaluate --workdir=runs/cifar10_small --num_steps=4 --features=inception`.

`:tiny` runs the same code in minutes and learns nothing.
"""

from diffusion_distill import paper


def get_config(variant: str = ""):
    config = paper.cifar10()
    config.diffusion.parameterization = "v"  # settles in fewer updates than x (above)
    config.diffusion.weighting = "snr_plus_one"  # the loss of v

    config.model.patch_size = 2  # 16x16 patches of 12 channels: a quarter of the work on pixels
    config.model.channels = 64  # what hours of two cores can train
    config.model.channel_multipliers = (1, 1, 1)  # 16, 8 and 4 patches
    config.model.num_blocks = 2  # the paper's has 3
    config.model.emb_channels = 256  # 4 times channels, as in the paper's
    config.model.attention_resolutions = (8,)  # 64 positions, where attention costs next to nothing
    config.model.num_groups = 16  # of 4 channels each
    config.model.dtype = "bfloat16"  # 1.4 times as fast where the processor has units for it
    config.model.class_conditional = True  # labels tell a small network much

    config.train.batch_size = 64  # half of the paper's: more updates for as much work
    config.train.checkpoint_every = 200  # some minutes of work to lose

    config.teacher.updates = 6_000  # 8 epochs
    config.teacher.learning_rate = 2e-3  # ten times the paper's, for a network so small
    config.teacher.warmup = 200  # in the paper's spirit: a small part of the updates
    config.teacher.lr_schedule = "linear"  # to 0: it settles what so few updates leave open
    config.teacher.ema_decay = 0.999  # an average over 1,000 updates
    config.teacher.weight_decay = 0.0  # so few epochs need no restraint
    config.teacher.dropout = 0.0  # the same reason
    config.teacher.label_dropout = 0.1  # so that it can be guided

    config.distill.start_steps = 64  # six rounds: what hours of two cores allow
    config.distill.first_round_solver = "heun"  # 64 steps of DDIM are too few (RESULTS.md)
    config.distill.updates = 300  # a round
    config.distill.updates_last_rounds = 600  # the rounds to 2 and to 1, the hardest
    config.distill.learning_rate = 1e-3  # half of the teacher's
    config.distill.lr_schedule = "constant"  # better at 4 and 1 steps than falling (RESULTS.md)
    config.distill.ema_decay = 0.98  # an average over 50 updates, for nothing of the start to stay

    config.eval.num_images = 500  # some minutes in all: 64 steps of an image take half a second
    config.eval.features = "thumbnails"  # Inception would take hours (above)
    config.eval.metrics = ("fd",)  # cheap, and enough to see a stage fail
    config.eval.baselines = ("ddim",)  # what students must beat
    return paper.with_variant(config, variant, known=("float32", "tiny"))
