"""LSUN church 128x128, unconditional: the paper's teacher, without distillation.

    python -m diffusion_distill.data.prepare --dataset=lsun_church128 --path=lsun/church_train \
        --out=data/lsun_church128
    python -m diffusion_distill.main --config=configs/lsun_church128_teacher.py \
        --workdir=runs/church

Hardware: the paper used 64 TPU v4 chips. On GPUs give --config.runtime.pixel_pairs=False:
pairs of pixels compute 18% more, which pays where a step waits for a TPU's memory.

Time: 439 EFLOP (550,000 updates of 2,048 images, three forward passes each): 38 hours on 64 chips
at 50 TFLOP a second each. Computed for single pixels, not measured.

Result: not measured here; of the paper's teacher no figure is known to us but its curves.

Settings, and what `:fast`, `:float32` and `:tiny` are: diffusion_distill/paper.py.
To distil it: configs/lsun_church128_distill.py with --config.distill.teacher=runs/church.
"""

from diffusion_distill import paper


def get_config(variant: str = ""):
    return paper.teacher_alone(paper.with_variant(paper.for_pods(paper.lsun128("church")), variant))
