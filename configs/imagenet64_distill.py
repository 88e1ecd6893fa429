"""ImageNet 64x64 with labels: the paper's teacher, then 1024 -> 512 -> ... -> 2 -> 1 steps.

    python -m diffusion_distill.data.prepare --dataset=imagenet64 --path=ILSVRC2012/train \
        --out=data/imagenet64
    python -m diffusion_distill.main --config=configs/imagenet64_distill.py \
        --workdir=runs/imagenet64

Hardware: the paper used 64 TPU v4 chips.

Time: the teacher takes 713 EFLOP, the 10 rounds 1,307 (600,000 updates of 2,048 images, five
forward passes each): 62 and 113 hours on 64 chips at 50 TFLOP a second each. `:fast` (8 rounds of
10,000 updates, from 256 steps) takes 174 EFLOP for its rounds, 15 hours at that speed, and
measuring adds 3% to that. Computed, not measured.

Result: not measured here. The paper shows curves; later papers cite it with FID 15.39 / 8.95 / 6.77
at 1 / 2 / 4 steps (from memory of Song et al. 2023, "Consistency Models", and others).

Settings, and what `:fast`, `:float32` and `:tiny` are: diffusion_distill/paper.py.
"""

from diffusion_distill import paper


def get_config(variant: str = ""):
    return paper.with_variant(paper.for_pods(paper.imagenet64()), variant)
