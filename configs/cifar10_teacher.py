"""CIFAR-10, unconditional: the paper's teacher, without distillation.

    python -m diffusion_distill.data.prepare --dataset=cifar10 --out=data/cifar10
    python -m diffusion_distill.main --config=configs/cifar10_teacher.py --workdir=runs/cifar10

Hardware: the paper used 8 TPU v4 chips.

Time: 10.4 EFLOP (800,000 updates of 128 images, three forward passes each): 58 hours on one
accelerator at 50 TFLOP a second. Computed, not measured.

Result: not measured here. The paper reports FID 2.51 for DDIM with 8192 steps.

Settings, and what `:fast`, `:float32` and `:tiny` are: diffusion_distill/paper.py.
To distil it: configs/cifar10_distill.py with --config.distill.teacher=runs/cifar10.
"""

from diffusion_distill import paper


def get_config(variant: str = ""):
    return paper.teacher_alone(paper.with_variant(paper.for_pods(paper.cifar10()), variant))
