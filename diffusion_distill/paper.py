"""The paper's data sets, its settings for them, and the variants that their configs have.

Salimans & Ho 2022, section 5 and the appendix on hyperparameters. `diffusion_distill.config.base`
has what all share, which is CIFAR-10's; here is what differs. Updates of the teachers are from
memory of the appendix.

configs/NAME_distill.py trains a teacher and distils it; with --config.distill.teacher=WHERE (a
workdir, a published checkpoint) it only distils. configs/NAME_teacher.py trains that teacher alone.
`:fast` shortens the rounds; `:float32` computes in float32, where the config does in bfloat16;
`:tiny` runs the same code in minutes on two cores.
"""

import dataclasses
from collections.abc import Sequence

from ml_collections import ConfigDict

from diffusion_distill.config import base


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What is known of one of the paper's data sets."""

    title: str  # its name for a person
    image_size: int  # height and width that the paper trains at
    num_classes: int  # of its labels, those that the paper does not use included; 0 for none
    counts: dict[str, int]  # images in each split, as published
    # how it is made that size, as in config.data.resize; "" where it is published so
    resize: str = ""
    # the paper's FID of 50,000 images against the training split, by sampling steps; {} where the
    # paper has curves only, and no numbers
    students_fid: dict[int, float] = dataclasses.field(default_factory=dict)
    # the same of the undistilled teacher with DDIM
    teacher_fid: dict[int, float] = dataclasses.field(default_factory=dict)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C): all of them are in colour."""
        return self.image_size, self.image_size, 3


_IMAGENET = {"train": 1_281_167, "val": 50_000, "validation": 50_000}
DATASETS = {
    "cifar10": Dataset(
        "CIFAR-10",
        image_size=32,
        num_classes=10,
        counts={"train": 50_000, "test": 10_000},
        students_fid={1: 9.12, 2: 4.51, 4: 3.00, 8: 2.57},  # Table 2 and the text
        teacher_fid={10: 13.36, 20: 6.84, 50: 4.67, 8192: 2.51},
    ),
    "imagenet64": Dataset("ImageNet 64x64", 64, 1000, _IMAGENET, "area"),
    "lsun_bedroom128": Dataset("LSUN bedroom 128x128", 128, 0, {"train": 3_033_042}, "antialias"),
    "lsun_church128": Dataset("LSUN church 128x128", 128, 0, {"train": 126_227}, "antialias"),
}


def cifar10() -> ConfigDict:
    """CIFAR-10, 32x32, without labels: 60.0 M parameters, 34 GFLOP forward an image."""
    config = base()
    config.data.name = "cifar10"  # the release, as its authors pack it
    config.data.path = "data/cifar10"  # where `prepare --dataset=cifar10` puts it
    config.data.image_size = DATASETS["cifar10"].image_size  # its only size
    config.data.random_flip = True  # as in all of the paper's runs
    return _measured_on_inception(config)


def imagenet64() -> ConfigDict:
    """ImageNet 64x64 with its 1,000 labels: 295.9 M parameters, 211 GFLOP forward an image."""
    config = _large("imagenet64")
    config.model.class_conditional = True  # the only one of the four
    config.model.channels = 192  # table of the paper's appendix, as the rest of the network
    config.model.channel_multipliers = (1, 2, 3, 4)  # 64, 32, 16 and 8 pixels
    return config


def lsun128(name: str) -> ConfigDict:
    """LSUN, "bedroom" or "church", at 128x128: 139.6 M parameters, 130 GFLOP forward an image."""
    config = _large(f"lsun_{name}128")
    config.model.channels = 64  # at 128 pixels, where a layer costs most
    config.model.channel_multipliers = (1, 2, 4, 6, 8)  # 128 down to 8 pixels
    return config


def _large(name: str) -> ConfigDict:
    """What ImageNet and LSUN share, and CIFAR-10 does not."""
    config = base()
    config.data.name = "prepared"  # too large to decode at each start
    config.data.path = f"data/{name}"  # where the configs' first lines have `prepare` put it
    config.data.image_size = DATASETS[name].image_size  # what `prepare` made; another is refused
    config.data.random_flip = True  # as in all of the paper's runs

    config.diffusion.parameterization = "both"  # x and eps, in twice the channels

    config.model.emb_channels = 768  # where CIFAR-10 has 4 times channels
    config.model.attention_resolutions = (8, 16, 32)  # one more than CIFAR-10
    config.model.num_heads = 0  # given by the channels of a head
    config.model.head_dim = 64  # so that wider layers have more heads

    config.train.batch_size = 2048  # of all devices together

    config.teacher.updates = 550_000  # from memory of the appendix
    config.teacher.learning_rate = 3e-4  # after a warm-up of 1,000 updates, as for CIFAR-10
    config.teacher.weight_decay = 0.0  # Adam, where CIFAR-10 has AdamW
    config.teacher.dropout = 0.1  # students have none

    config.distill.start_steps = 1024  # where CIFAR-10 starts from 8192
    config.distill.learning_rate = 1e-4  # falling to 0 in each round
    return _measured_on_inception(config)


def _measured_on_inception(config: ConfigDict) -> ConfigDict:
    """FID of 50,000 images against the training split, and what goes with it."""
    config.eval.features = "inception"  # the features that FID is defined by
    config.eval.metrics = ("fd", "kid", "precision_recall")  # FID first: baselines have it alone
    config.eval.max_steps = 128  # the paper has 8192, which would cost as much as training
    return config


def pairs_pay(config: ConfigDict) -> bool:
    """Whether a TPU, which has lanes of 128 channels, reads less with runtime.pixel_pairs."""
    model = config.model
    highest = model.channels * model.channel_multipliers[0]  # channels at that resolution
    return model.architecture == "unet" and 2 * highest <= 128


def for_pods(config: ConfigDict) -> ConfigDict:
    """What makes a step cheap on TPUs, as `plan` counts it (RESULTS.md); the paper does not say."""
    config.model.dtype = "bfloat16"  # half of the bytes to read and write
    config.runtime.fsdp = 8  # devices that share weights, averages and Adam's moments
    config.runtime.pixel_pairs = pairs_pay(config)  # LSUN's
    return config


def teacher_alone(config: ConfigDict) -> ConfigDict:
    """No rounds: the run ends with its teacher."""
    config.distill.end_steps = config.distill.start_steps  # so that there is no round
    return config


def with_variant(
    config: ConfigDict, variant: str, known: Sequence[str] = ("fast", "float32", "tiny")
) -> ConfigDict:
    """The config, or the variant of it that a person asked for by FILE.py:VARIANT.

    "fast" is the short schedule, 10,000 updates a round from 256 steps on; "float32" computes in
    float32; "tiny" is the same code in minutes on two cores, which learns nothing; "" is the config
    as it is.
    """
    if variant not in ("", *known):
        raise ValueError(f"this config has the variants {', '.join(known)}, not {variant}")
    if variant:
        VARIANTS[variant](config)
    return config


def _fast(config: ConfigDict) -> None:
    """The paper's appendix found less lost by fewer updates a round than by quartering."""
    config.distill.start_steps = 256  # two rounds fewer to wait for at 1024, five at 8192
    config.distill.updates = 10_000  # a fifth of the paper's
    config.distill.updates_last_rounds = 10_000  # a tenth: all rounds alike
    config.distill.ema_decay = 0.9995  # 0.9999 would leave a third of each student its teacher's
    config.eval.baseline_images = 10_000  # for fewer hours; a metric's name has its count


def _float32(config: ConfigDict) -> None:
    """Wherever the network computes in it, not just for sums, norms and softmax."""
    config.model.dtype = "float32"  # about twice the bytes, and on GPUs half of the speed


def _tiny(config: ConfigDict) -> None:
    """Every part runs, at the data's own size: the network is narrow, the chain 4 -> 2 -> 1."""
    config.model.channels = 8  # enough for every part to have something to do
    config.model.channel_multipliers = (1, 1, 1)  # a resolution between two others
    config.model.num_blocks = 1  # the fewest; two on the way up
    config.model.emb_channels = 16  # twice channels, next to no time
    config.model.attention_resolutions = (config.data.image_size // 4,)  # where it is cheapest
    config.model.num_heads, config.model.head_dim = 1, 0  # 8 channels are no head of 64
    config.model.num_groups = 4  # must divide 8 channels
    config.model.dtype = "float32"  # which CPUs compute faster

    config.train.batch_size = 4  # small, for time
    config.train.checkpoint_every = 5  # so that a stop within a stage can be tried

    config.teacher.updates = 10  # as many as are seen to run
    config.teacher.warmup = 0  # longer than the stage
    config.teacher.learning_rate = config.distill.learning_rate = 1e-3  # so few updates must show
    config.teacher.ema_decay = config.distill.ema_decay = 0.5  # so that weights leave their start

    config.distill.start_steps = 4  # two rounds: one from the teacher, one from a student
    config.distill.updates = 5  # not used by two rounds, which are the last; as below
    config.distill.updates_last_rounds = 5  # the rounds to 2 and to 1

    config.eval.num_images = 16  # seconds on two cores
    config.eval.features = "thumbnails"  # Inception would take longer than all the rest
    config.eval.metrics = ("fd", "kid")  # one on moments, one on pairs of images
    config.eval.baselines = ("ddim",)  # one sampler is enough to run that code
    config.eval.grid_images = 16  # few, for time
    config.runtime.sampler_batch_size = 8  # two batches, so that their seam is tried


VARIANTS = {"fast": _fast, "float32": _float32, "tiny": _tiny}
