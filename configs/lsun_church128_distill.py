"""LSUN church 128x128, unconditional: the paper's teacher, then 1024 -> ... -> 2 -> 1 steps.

    python -m diffusion_distill.data.prepare --dataset=lsun_church128 --path=lsun/church_train \
        --out=data/lsun_church128
    python -m diffusion_distill.main --config=configs/lsun_church128_distill.py \
        --workdir=runs/church

Hardware: the paper used 64 TPU v4 chips. On GPUs give --config.runtime.pixel_pairs=False:
pairs of pixels compute 18% more, which pays where a step waits for a TPU's memory.

Time: the teacher takes 439 EFLOP, the 10 rounds 805 (600,000 updates of 2,048 images, five forward
passes each): 38 and 70 hours on 64 chips at 50 TFLOP a second each. `:fast` (8 rounds of 10,000
updates, from 256 steps) takes 107 EFLOP for its rounds, 9 hours at that speed, and measuring adds
3% to that. Computed for single pixels, not measured.

Result: not measured here. The paper shows curves only.

Settings, and what `:fast`, `:float32` and `:tiny` are: diffusion_distill/paper.py.
"""

from diffusion_distill import paper


def get_config(variant: str = ""):
    return paper.with_variant(paper.for_pods(paper.lsun128("church")), variant)
