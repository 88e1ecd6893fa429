"""The fields of a config and their defaults. validate/ has what makes a config valid.

A file in configs/ starts from `base()` and sets what differs. Defaults are the paper's where the
paper has one. Fields under `runtime` say how to run and change no result beyond rounding: they
may differ between two starts of one workdir, and so may data.path and eval.reference, where the
same images or statistics are; every other field may not.

docs/config.md is made of the comments here, by docs/make_config.py.
"""

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """A config with every field there is. Batch sizes are global, whatever the hardware."""
    config = ConfigDict()
    config.seed = 0  # of everything random: first weights, batches, noise, dropout

    config.data = ConfigDict()  # the images
    config.data.name = "digits"  # the kind of source
    # the folder or file it is in, or its gs:// address (not for `tfds`); all but `digits` and
    # `tfds` need one
    config.data.path = ""
    # what is trained on; the source must have it; of a `folder`, `all` takes all subfolders
    config.data.split = "train"
    # height and width; `folder` and `tfds` crop and resize to it, of others it must be what they
    # have; 0: as they are
    config.data.image_size = 0
    # how `folder` and `tfds` resize: `area` as for ImageNet in the paper, `antialias` as for LSUN
    config.data.resize = "area"
    # `folder` and `tfds`: 3 makes colour of grey; 1 makes grey of colour (`folder` only); 0: as
    # they are
    config.data.channels = 0
    config.data.folder_labels = True  # `folder`: whether each subfolder is a label
    config.data.upright = True  # `folder`: whether photos are turned as their EXIF orientation says
    config.data.tfds_name = ""  # `tfds`: the data set, `cifar10` or `lsun/church:3.1.0`
    # training images are mirrored left to right, each with probability 1/2
    config.data.random_flip = False

    config.diffusion = ConfigDict()  # what is predicted
    config.diffusion.parameterization = "x"  # what the network predicts
    config.diffusion.weighting = "truncated_snr"  # of the loss
    # logSNR of the cosine schedule at t = 1; must be less than `diffusion.logsnr_max`
    config.diffusion.logsnr_min = -20.0
    config.diffusion.logsnr_max = 20.0  # logSNR at t = 0

    config.model = ConfigDict()  # the network
    # `unet`, the paper's, of the fields here; `unet2d`, diffusers' UNet2DModel: of the fields of
    # `unet2d` and, here, of `model.class_conditional`, `model.dtype` and `model.guidance` alone
    config.model.architecture = "unet"
    config.model.channels = 256  # at the highest resolution
    # of `model.channels` at each resolution; each after the first halves the resolution once more
    config.model.channel_multipliers = (1, 1, 1)
    # residual blocks at each resolution on the way down; one more on the way up
    config.model.num_blocks = 3
    config.model.emb_channels = 1024  # width of the embedding of time and label
    # heights, in patches of `model.patch_size`, at which attention follows each block
    config.model.attention_resolutions = (8, 16)
    # pixels a side that become channels at the input and are put back at the output; the network
    # works at the image's size over this; 1: on pixels
    config.model.patch_size = 1
    config.model.num_heads = 1  # heads of attention; 0 exactly where `model.head_dim` is not
    config.model.head_dim = 0  # channels of a head; 0 exactly where `model.num_heads` is not
    config.model.num_groups = 32  # of GroupNorm; every number of channels must be a multiple of it
    config.model.class_conditional = False  # whether labels enter; the data says how many there are
    config.model.resample_blocks = True  # residual blocks resample; `False`: plain convolutions do
    config.model.time_input = "arctan"  # how logSNR enters; `arctan` is the cosine schedule's angle
    # what is computed in; weights, normalisation, softmax and output stay float32; a teacher's
    # weights, which are only read, are also kept in it where they are computed in it, with the
    # same result
    config.model.dtype = "float32"

    # (low, high): the guidance w that the network is told lies between them; (): it is told none.
    # For a chain that starts from such a network; `match.guidance` makes one
    config.model.guidance = ()

    config.unet2d = ConfigDict()  # diffusers' UNet2DModel, with its names
    config.unet2d.center_input_sample = False  # whether it sees 2 z - 1 in place of z
    config.unet2d.time_embedding_type = "positional"  # sine and cosine, or a vector for each level
    config.unet2d.time_embedding_dim = 0  # width of the embedding; 0: 4 times the first width
    config.unet2d.freq_shift = 0.0  # the lowest frequency is 1 / 10000 at 1, a little higher at 0
    config.unet2d.flip_sin_to_cos = True  # whether cosine comes first
    # a level each, highest resolution first
    config.unet2d.down_block_types = ("DownBlock2D",) + 3 * ("AttnDownBlock2D",)
    # a level each, lowest resolution first
    config.unet2d.up_block_types = 3 * ("AttnUpBlock2D",) + ("UpBlock2D",)
    config.unet2d.block_out_channels = (224, 448, 672, 896)  # of each level, highest first
    # residual blocks of a level on the way down; one more on the way up
    config.unet2d.layers_per_block = 2
    config.unet2d.mid_block_scale_factor = 1.0  # what blocks in the middle are divided by
    # of convolutions with stride 2: 1 pads all sides; 0 the right and the bottom
    config.unet2d.downsample_padding = 1
    config.unet2d.downsample_type = "conv"  # how `AttnDownBlock2D` resamples
    config.unet2d.upsample_type = "conv"  # how `AttnUpBlock2D` does
    config.unet2d.attention_head_dim = 8  # channels of a head; 0: one head
    config.unet2d.norm_num_groups = 32  # of GroupNorm
    # of the attention in the middle; 0: as the others where the embedding is added, none where it
    # scales and shifts
    config.unet2d.attn_norm_num_groups = 0
    config.unet2d.norm_eps = 1e-5  # added to the variance
    # whether the embedding is added (`default`), or scales and shifts
    config.unet2d.resnet_time_scale_shift = "default"
    config.unet2d.add_attention = True  # whether there is attention in the middle
    # labels that it knows; 0 exactly where `model.class_conditional` is `False`
    config.unet2d.num_class_embeds = 0

    config.scheduler = ConfigDict()  # the levels that a `unet2d` knows, with diffusers' names
    config.scheduler.num_train_timesteps = 1000  # how many levels
    config.scheduler.beta_start = 1e-4  # of the first level
    config.scheduler.beta_end = 0.02  # of the last
    config.scheduler.beta_schedule = "linear"  # between them
    config.scheduler.trained_betas = ()  # in place of the last three, where given
    config.scheduler.rescale_betas_zero_snr = False  # so that the last level is noise alone
    # what `ddim_diffusers` does; all other samplers clip to [-1, 1]
    config.scheduler.clip_sample = True
    config.scheduler.clip_sample_range = 1.0  # to plus or minus this
    config.scheduler.timestep_spacing = "leading"  # which levels `ddim_diffusers` visits
    config.scheduler.steps_offset = 0  # added to the levels of `leading`
    # whether the last step of `ddim_diffusers` goes to the image; `False`: to level 0
    config.scheduler.set_alpha_to_one = True

    config.train = ConfigDict()  # every stage
    # of all devices together; a multiple of their number times `runtime.accumulation`
    config.train.batch_size = 128
    config.train.adam_b1 = 0.9  # Adam's decay of the mean gradient
    config.train.adam_b2 = 0.999  # and of the mean squared gradient
    config.train.adam_eps = 1e-8  # added to the root of the latter
    # largest norm of the gradient of the whole batch; 0: not clipped
    config.train.grad_clip_norm = 1.0
    config.train.checkpoint_every = 5000  # updates; the end of a stage is always saved
    # the newest of a stage; with two, one is whole at any moment
    config.train.checkpoints_kept = 2

    config.teacher = ConfigDict()  # the first stage
    config.teacher.updates = 800_000  # the paper's are from memory of its appendix
    config.teacher.learning_rate = 2e-4  # at its highest
    config.teacher.warmup = 1000  # updates over which the learning rate rises from 0
    # after the rise; `linear` falls to 0 at the end of the stage
    config.teacher.lr_schedule = "constant"
    # decoupled (AdamW): weights shrink by the learning rate times this
    config.teacher.weight_decay = 0.001
    config.teacher.ema_decay = 0.9999  # of the averaged weights, per update
    config.teacher.dropout = 0.2  # in residual blocks
    # the share of examples that it learns from without their label, so that it can be guided
    config.teacher.label_dropout = 0.0

    # a stage between the teacher and the first round: another network learns what the teacher
    # predicts, at the same times
    config.match = ConfigDict()
    # 0: no such stage. With it `distill.teacher` may predict something else than the run, or be
    # another network
    config.match.updates = 0
    # (low, high): each example is guided by a w drawn between them, and the network is told it, in
    # this stage and in every round; (): not guided. 0 is no guidance; others write 1 + w
    config.match.guidance = ()
    config.match.learning_rate = 2e-4  # at its highest
    config.match.warmup = 1000  # as for the teacher
    config.match.lr_schedule = "linear"  # as for the teacher
    config.match.weight_decay = 0.0  # as for the teacher
    config.match.ema_decay = 0.9999  # as for the teacher
    config.match.dropout = 0.0  # as for the teacher

    config.distill = ConfigDict()  # the rounds
    # where a teacher's averaged weights are, if none is to be trained: a workdir (its last finished
    # stage), a stage's folder in one, an exported folder, one of diffusers, or a published file;
    # they are copied; the steps that they are made for, where known, stand in place of
    # `distill.start_steps`
    config.distill.teacher = ""
    config.distill.start_steps = 8192  # steps as which the teacher is first distilled
    config.distill.end_steps = 1  # steps of the last student; at most `distill.start_steps`
    # what each round divides the number of steps by; 2: halving, as in the paper; more: TRACT; the
    # last round divides by less where need be
    config.distill.divide_by = 2
    # what goes along a teacher that knows all times over a step of its first student, by two
    # evaluations: two steps of `ddim`, or one of `heun`, of second order; a teacher that was
    # distilled itself knows its own times alone: `ddim`; so does a first student of one step
    config.distill.first_round_solver = "ddim"
    config.distill.updates = 50_000  # a round
    config.distill.updates_last_rounds = 100_000  # of the rounds to 2 and to 1 steps
    config.distill.learning_rate = 5e-5  # at its highest
    config.distill.warmup = 0  # as for the teacher
    config.distill.lr_schedule = "linear"  # as for the teacher; linear: to 0 in each round
    config.distill.weight_decay = 0.0  # as for the teacher
    # as for the teacher; the average starts at the teacher's weights
    config.distill.ema_decay = 0.9999
    config.distill.dropout = 0.0  # as for the teacher

    config.eval = ConfigDict()  # how stages are measured
    config.eval.metrics = ("fd",)  # baselines are compared by the first
    config.eval.num_images = 50_000  # generated for each metric; the count is in its name
    config.eval.seed = 1  # of the generated images
    config.eval.features = "pixels"  # what is compared; FID is `fd` on `inception`
    config.eval.split = ""  # of the data, all of which is the reference; `""`: `data.split`
    # in place of the data: an `.npz` of another project's `mu` and `sigma`
    config.eval.reference = ""
    # measure fewer images than a Frechet distance takes (2,049 on `inception`)
    config.eval.allow_biased = False
    config.eval.max_steps = 256  # no sampling of more steps is measured: 8192 would take days
    # samplers of the undistilled teacher, at the steps of each stage
    config.eval.baselines = ("ddim", "ancestral")
    config.eval.baseline_images = 0  # generated for each baseline; 0: `eval.num_images`
    # log-variance coefficient of ancestral sampling: 0 small, 1 large
    config.eval.ancestral_variance = 0.0
    # judge labels by a classifier fitted on the data's pixels; for small images with labels
    config.eval.label_agreement = False
    # further values of w at which each stage that can be guided is measured, too
    config.eval.guidance = ()
    config.eval.grid_images = 40  # in `samples.png`, from the same noise in every stage

    config.runtime = ConfigDict()  # how to run
    # `auto`: where the data has at most a GiB; otherwise it is read ahead
    config.runtime.data_on_device = "auto"
    config.runtime.fsdp = 1  # devices that share one copy of the weights; 1: each has its own
    config.runtime.accumulation = 1  # parts in which a batch is computed, to save memory
    config.runtime.remat = False  # compute activations again in the backward pass, to save memory
    # attention by cuDNN's fused kernel on NVIDIA GPUs, in bfloat16 with heads of at most 128
    # channels; `False`: XLA's own, as everywhere else
    config.runtime.fused_attention = True
    # two neighbouring pixels side by side as channels, at the highest resolution of model
    # architecture `unet`, unless it is the only one or has attention: the same network, which with
    # at most 64 channels there reads and writes less on TPUs, and computes twice as much there
    config.runtime.pixel_pairs = False
    # updates in one compiled call; 0: 1 on a CPU, 10 elsewhere
    config.runtime.updates_per_call = 0
    # whether the loop over sampling steps is inside one compiled program or outside, around the
    # program of a step; `auto`: outside on a CPU, inside elsewhere
    config.runtime.sampler_loop = "auto"
    config.runtime.sampler_batch_size = 256  # images sampled and measured at once
    # file of the feature network's weights; `""`: its usual place
    config.runtime.feature_weights = ""
    # a folder of this host, of reference statistics, compiled programs, and copies of prepared sets
    # that are in a bucket; `""`: `$DIFFUSION_DISTILL_CACHE`, else `~/.cache/diffusion_distill`
    config.runtime.cache_dir = ""
    config.runtime.log_every_seconds = 5.0  # between two lines of progress
    config.runtime.log_every_updates = 10  # between two rows of `metrics.jsonl`
    return config


def to_dict(config: ConfigDict) -> dict:
    """The config as plain JSON values: tuples become lists."""

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return plain(config.to_dict())


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Lines that name each field in which two dicts differ, `runtime` and `data.path` left out."""
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
