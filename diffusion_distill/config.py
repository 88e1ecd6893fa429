"""The fields of a config and their defaults. validate.py has what makes a config valid.

A file in configs/ starts from `base()` and sets what differs. Defaults are the paper's where the
paper has one. Fields under `runtime` say how to run and change no result beyond rounding: they
may differ between two starts of one workdir, and so may data.path; every other field may not.
"""

import ml_collections


def base() -> ml_collections.ConfigDict:
    """A config with every field there is. Batch sizes are global, whatever the hardware."""
    config = ml_collections.ConfigDict()
    config.seed = 0  # of everything random: initial weights, batches, noise, dropout

    config.data = data = ml_collections.ConfigDict()
    data.name = "digits"  # one of data/sources.py: digits, cifar10, folder, npz, tfds, prepared
    data.path = ""  # the folder or file it is in; may differ between two starts of a workdir
    data.split = "train"  # what is trained on
    data.image_size = 0  # height and width; folder and tfds crop and resize to it; 0: as they are
    data.resize = "area"  # folder and tfds, how: area (as for ImageNet), antialias (as for LSUN)
    data.channels = 0  # folder and tfds: 3 makes colour of grey, 1 grey of colour; 0: as they are
    data.folder_labels = True  # folder: whether each subfolder is a label
    data.tfds_name = ""  # tfds: the data set, "cifar10" or "lsun/church:3.1.0"
    data.random_flip = False  # mirror training images left to right, each with probability 1/2

    config.diffusion = diffusion = ml_collections.ConfigDict()
    diffusion.parameterization = "x"  # what the network predicts: x, eps, v, both
    diffusion.weighting = "truncated_snr"  # constant, snr, truncated_snr, snr_plus_one
    diffusion.logsnr_min = -20.0  # of the cosine schedule, at t = 1
    diffusion.logsnr_max = 20.0  # at t = 0

    config.model = model = ml_collections.ConfigDict()
    model.channels = 256  # at the highest resolution
    model.channel_multipliers = (1, 1, 1)  # of channels at each resolution, halving after each
    model.num_blocks = 3  # residual blocks at each resolution on the way down; one more up
    model.emb_channels = 1024  # width of the embedding of time and label
    model.attention_resolutions = (8, 16)  # image heights at which attention follows each block
    model.num_heads = 1  # of attention; 0 where head_dim is given
    model.head_dim = 0  # channels of a head; 0 where num_heads is given
    model.num_groups = 32  # of GroupNorm; every number of channels must be a multiple
    model.class_conditional = False  # whether labels enter; the data says how many there are
    model.resample_blocks = True  # resample inside residual blocks, not by plain convolutions
    model.time_input = "arctan"  # how logSNR enters: arctan (the paper's), linear, sigmoid
    model.dtype = "float32"  # what to compute in: float32, bfloat16

    config.train = train = ml_collections.ConfigDict()  # the same in every stage
    train.batch_size = 128  # of all devices together
    train.adam_b1 = 0.9  # Adam's decay of the mean gradient
    train.adam_b2 = 0.999  # and of the mean squared gradient
    train.adam_eps = 1e-8  # added to the root of the latter
    train.grad_clip_norm = 1.0  # of the gradient of the whole batch; 0 for no clipping
    train.checkpoint_every = 5000  # updates; the end of a stage is always saved
    train.checkpoints_kept = 2  # the newest of a stage; 2 at least: one is whole at any moment

    config.teacher = teacher = ml_collections.ConfigDict()
    teacher.updates = 800_000  # the paper's for CIFAR-10, from memory of its appendix
    teacher.learning_rate = 2e-4  # at its highest
    teacher.warmup = 1000  # updates over which the learning rate rises from 0
    teacher.lr_schedule = "constant"  # after the warm-up: constant, or linear to 0
    teacher.weight_decay = 0.001  # decoupled (AdamW): weights shrink by learning_rate times this
    teacher.ema_decay = 0.9999  # of the averaged weights, per update
    teacher.dropout = 0.2  # in residual blocks

    config.distill = distill = ml_collections.ConfigDict()
    # Where the averaged weights of a teacher are, if none is to be trained: a workdir (its last
    # finished stage), a stage's folder in one, an exported folder, or a published file. They are
    # copied. The steps that they are made for, where known, stand in place of start_steps.
    distill.teacher = ""
    distill.start_steps = 8192  # steps as which the teacher is first distilled; a power of 2
    distill.end_steps = 1  # steps of the last student; a power of 2
    distill.updates = 50_000  # a round
    distill.updates_last_rounds = 100_000  # the rounds to 2 and to 1 steps
    distill.learning_rate = 5e-5  # at its highest
    distill.warmup = 0  # as for the teacher, and so are those that follow
    distill.lr_schedule = "linear"
    distill.weight_decay = 0.0
    distill.ema_decay = 0.9999
    distill.dropout = 0.0

    config.eval = evaluation = ml_collections.ConfigDict()
    evaluation.metrics = ("fd",)  # of metrics/evaluator.py; baselines are compared by the first
    evaluation.num_images = 50_000  # generated for each metric; the count is in its name
    evaluation.seed = 1  # of the generated images
    evaluation.features = "pixels"  # what is compared: one of metrics/features.py
    evaluation.split = ""  # of the data, all of which is the reference; "": data.split
    evaluation.reference = ""  # in its place: an npz of another project's mu and sigma
    evaluation.allow_biased = False  # measure fewer images than a Frechet distance takes
    evaluation.max_steps = 256  # no sampling of more steps is measured: 8192 would take days
    evaluation.baselines = ("ddim", "ancestral")  # samplers of the undistilled teacher
    evaluation.baseline_images = 0  # generated for each baseline; 0: num_images
    evaluation.ancestral_variance = 0.0  # log-variance coefficient: 0 small, 1 large
    evaluation.label_agreement = False  # judge labels by a classifier fitted on the data's pixels
    evaluation.grid_images = 40  # in samples.png, from the same noise in every stage

    config.runtime = runtime = ml_collections.ConfigDict()
    runtime.data_on_device = "auto"  # auto: where it has at most a GiB; always, never: read ahead
    runtime.fsdp = 1  # devices that share one copy of the weights; 1: each has its own
    runtime.accumulation = 1  # parts in which a batch is computed, to save memory
    runtime.remat = False  # recompute activations in the backward pass, to save memory
    runtime.fused_attention = True  # cuDNN's on NVIDIA GPUs, in bfloat16; False: XLA's there too
    runtime.updates_per_call = 0  # updates in one compiled call; 0: 1 on CPU, 10 elsewhere
    runtime.sampler_loop = "auto"  # auto: outside the compiled step on CPU, inside elsewhere
    runtime.sampler_batch_size = 256  # images sampled at once
    runtime.feature_weights = ""  # file of the feature network's weights; "": its usual place
    runtime.cache_dir = ""  # "": $DIFFUSION_DISTILL_CACHE, else ~/.cache/diffusion_distill
    runtime.log_every_seconds = 5.0  # between two lines of progress
    runtime.log_every_updates = 10  # between two rows of metrics.jsonl
    return config


def to_dict(config: ml_collections.ConfigDict) -> dict:
    """The config as plain JSON values: tuples become lists."""

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return plain(config.to_dict())


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Lines that name each field in which two config dicts differ, `runtime` left out."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        path = f"{prefix}{name}"
        if path == "config.data.path" or name == "runtime":
            continue
        a, b = old.get(name, "(none)"), new.get(name, "(none)")
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{path}.")
        elif a != b:
            lines.append(f"{path}: {a!r} -> {b!r}")
    return lines
