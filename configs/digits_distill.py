"""Handwritten digits, 8x8 pixels, with labels: a teacher, then 32 -> 16 -> 8 -> 4 -> 2 -> 1 steps.

    python -m diffusion_distill.main --config=configs/digits_distill.py --workdir=runs/digits

Real images (the 1,797 that scikit-learn ships), no download.

Hardware: two CPU cores and 1.8 GB of memory.

Time: under five minutes, measured (RESULTS.md).

Result: measured there, fd_pixels1k_train: teacher 0.30 at 32 steps,
students 0.30 / 0.31 / 0.33 / 0.36 at 8 / 4 / 2 / 1 steps, where the teacher with DDIM has 0.47 /
0.83 / 2.07 / 6.08.

`:guided` trains the teacher without a tenth of its labels, and between teacher and first round a
match stage, whose student is told how strongly to be guided towards its label; so are all after it.
A minute or two more; the report then has distance and label agreement against guidance.

`:tiny` runs the same code in half a minute and learns nothing: it is for tests.
"""

from diffusion_distill.config import base


def get_config(variant: str = ""):
    config = base()
    config.data.name = "digits"  # nothing to download

    config.diffusion.parameterization = "v"  # at these updates x is far from done (RESULTS.md)
    config.diffusion.weighting = "snr_plus_one"  # the loss of v

    config.model.channels = 32  # an eighth of the paper's, for 1,797 small images
    config.model.channel_multipliers = (1, 1)  # 8 and 4 pixels
    config.model.num_blocks = 1  # the paper's has 3; two cores have minutes
    config.model.emb_channels = 128  # 4 times channels, as in the paper's
    config.model.attention_resolutions = (4,)  # 16 positions, where attention costs next to nothing
    config.model.num_groups = 8  # of 4 channels each
    config.model.class_conditional = True  # so that a digit can be asked for, and judged

    config.train.batch_size = 32  # more updates did more than more images (RESULTS.md)
    config.train.checkpoint_every = 500  # under half a minute of work to lose

    config.teacher.updates = 1200  # under a minute on two cores, 21 epochs
    config.teacher.learning_rate = 2e-3  # ten times the paper's, for a network so small
    config.teacher.warmup = 50  # in the paper's spirit: a small part of the updates
    config.teacher.lr_schedule = "linear"  # to 0: it settles what so few updates leave open
    config.teacher.ema_decay = 0.99  # an average over 100 updates
    config.teacher.weight_decay = 0.0  # 21 epochs need no restraint
    config.teacher.dropout = 0.0  # the same reason

    config.distill.start_steps = 32  # the sampler gains next to nothing by more (RESULTS.md)
    config.distill.first_round_solver = "heun"  # better than DDIM, for as much (RESULTS.md)
    config.distill.updates = 200  # a round, about ten seconds
    config.distill.updates_last_rounds = 300  # the rounds to 2 and to 1, the hardest
    config.distill.learning_rate = 1e-3  # half of the teacher's, falling to 0 in each round
    config.distill.ema_decay = 0.98  # an average over 50 updates

    config.eval.num_images = 1000  # what is compared with 1,797, in seconds
    config.eval.baselines = ("ddim", "ancestral", "dpmpp_2m")  # the last: what needs no training
    config.eval.label_agreement = True  # whether the digit that was asked for came out

    if variant == "guided":
        config.teacher.label_dropout = 0.1  # as is usual: enough to know images without labels
        config.match.updates = 800  # with 400 the students were at 0.64 without guidance
        config.match.guidance = (0.0, 2.0)  # past 2 digits only lose variety
        config.match.learning_rate = 1e-3  # as in the rounds
        config.match.warmup = 0  # it begins as its teacher
        config.match.ema_decay = 0.98  # as in the rounds
        config.eval.guidance = (0.0, 0.5, 1.0, 2.0)  # where the curve bends
    elif variant == "tiny":
        config.model.channels = 8  # one a group
        config.model.emb_channels = 16  # twice channels, next to no time
        config.train.batch_size = 16  # half, for time
        config.train.checkpoint_every = 4  # so that a stop within a stage can be tried
        config.teacher.updates = 12  # three checkpoints
        config.distill.start_steps = 4  # two rounds: one from the teacher, one from a student
        config.distill.first_round_solver = "ddim"  # one program for both, for time
        config.distill.updates = 6  # as the last rounds, which both are
        config.distill.updates_last_rounds = 6  # one checkpoint within, one at the end
        config.teacher.ema_decay = config.distill.ema_decay = 0.5  # so few updates must show
        config.eval.baselines = ("ddim", "ancestral")  # one step at a time, and a random one
        config.eval.num_images = 100  # enough for a number, which says nothing
        config.eval.grid_images = 10  # one of each digit
    elif variant:
        raise ValueError(f"this config has the variants guided and tiny, not {variant}")
    return config
