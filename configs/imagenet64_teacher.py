"""ImageNet 64x64 with labels: the paper's teacher, without distillation.

    python -m diffusion_distill.data.prepare --dataset=imagenet64 --path=ILSVRC2012/train \
        --out=data/imagenet64
    python -m diffusion_distill.main --config=configs/imagenet64_teacher.py \
        --workdir=runs/imagenet64

Hardware: the paper used 64 TPU v4 chips.

Time: 713 EFLOP (550,000 updates of 2,048 images, three forward passes each): 62 hours on 64 chips
at 50 TFLOP a second each. Computed, not measured.

Result: not measured here; of the paper's teacher no figure is known to us but its curves.

Settings, and what `:fast`, `:float32` and `:tiny` are: diffusion_distill/paper.py.
To distil it: configs/imagenet64_distill.py with --config.distill.teacher=runs/imagenet64.
"""

from diffusion_distill import paper


def get_config(variant: str = ""):
    return paper.teacher_alone(paper.with_variant(paper.for_pods(paper.imagenet64()), variant))
