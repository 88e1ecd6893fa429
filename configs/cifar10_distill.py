"""CIFAR-10, unconditional: the paper's teacher, then 8192 -> 4096 -> ... -> 2 -> 1 steps.

    python -m diffusion_distill.data.prepare --dataset=cifar10 --out=data/cifar10
    python -m diffusion_distill.main --config=configs/cifar10_distill.py --workdir=runs/cifar10

Hardware: the paper used 8 TPU v4 chips.

Time: the teacher takes 10.4 EFLOP, the 13 rounds 16.5 (750,000 updates of 128 images, five forward
passes each): 58 and 91 hours on one accelerator at 50 TFLOP a second. `:fast` (8 rounds of 10,000
updates, from 256 steps) takes 1.8 EFLOP for its rounds, 10 hours at that speed; most quality that
it loses it loses at few steps. Measuring comes on top: 1.3 EFLOP, 7 hours, for 50,000 images of
each stage to 128 steps and of two baselines at the same steps; `:fast` has 10,000 of the baselines:
0.8 EFLOP, 4.6 hours. Computed, not measured.

Result: not measured here. The paper's table of FID after distillation has 9.12 / 4.51 / 3.00 / 2.57
at 1 / 2 / 4 / 8 steps; its teacher with DDIM 2.51 at 8192 steps, and 13.36 / 6.84 / 4.67 at 10 / 20
/ 50. They are of the full schedule; for `:fast` its appendix shows curves only.

Settings, and what `:fast`, `:float32` and `:tiny` are: diffusion_distill/paper.py.
"""

from diffusion_distill import paper


def get_config(variant: str = ""):
    return paper.with_variant(paper.for_pods(paper.cifar10()), variant)
