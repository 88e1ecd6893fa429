"""A teacher that diffusers trained, on the digits: its own network, scheduler, loss and average.

    python -m benchmarks.diffusers_teacher --out=runs/diffusers_digits

writes the folder of a DDPM pipeline: UNet2DModel with the digits' labels, which predicts epsilon on
the linear betas that diffusers has by default. Minutes on two CPU cores; it takes the extra
`peers`. A chain from it, and what its own DDIM has at as many steps:

    python -m diffusion_distill.main --config=configs/from_diffusers.py:runs/diffusers_digits \\
        --workdir=runs/from_diffusers --config.data.name=digits --config.train.batch_size=32 \\
        --config.match.updates=1200 --config.match.learning_rate=2e-3 --config.match.warmup=50 \\
        --config.match.ema_decay=0.99 --config.distill.start_steps=32 \\
        --config.distill.updates=200 --config.distill.updates_last_rounds=300 \\
        --config.distill.learning_rate=1e-3 --config.distill.ema_decay=0.98 \\
        --config.eval.num_images=1000 --config.eval.label_agreement=True
"""

import sys
import time

import torch
from absl import app, flags
from sklearn.datasets import load_digits

sys.modules.setdefault("torchvision", None)  # diffusers takes it where it is, of whatever torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel  # noqa: E402
from diffusers.optimization import get_scheduler  # noqa: E402
from diffusers.training_utils import EMAModel  # noqa: E402

_OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
_UPDATES = flags.DEFINE_integer("updates", 1500, "Of 32 images each.")
_PREDICTION = flags.DEFINE_enum(
    "prediction_type", "epsilon", ["epsilon", "v_prediction", "sample"], "What it predicts."
)


def main(argv):
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8.0 - 1.0
    labels = torch.tensor(digits.target)
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        num_class_embeds=10,
    )
    scheduler = DDPMScheduler(prediction_type=_PREDICTION.value)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    rates = get_scheduler(
        "linear", optimizer, num_warmup_steps=50, num_training_steps=_UPDATES.value
    )
    average = EMAModel(model.parameters(), decay=0.995)
    targets = {
        "epsilon": lambda x, eps, t: eps,
        "sample": lambda x, eps, t: x,
        "v_prediction": scheduler.get_velocity,
    }
    began = time.monotonic()
    for update in range(1, _UPDATES.value + 1):
        chosen = torch.randint(len(images), (32,))
        x, t = images[chosen], torch.randint(1000, (32,))
        eps = torch.randn_like(x)
        output = model(scheduler.add_noise(x, eps, t), t, labels[chosen]).sample
        loss = (output - targets[_PREDICTION.value](x, eps, t)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        average.step(model.parameters())
        if update % 200 == 0:
            seconds = time.monotonic() - began
            print(f"update {update}, loss {loss.item():.4f}, {seconds:.0f}s", flush=True)
    average.copy_to(model.parameters())
    DDPMPipeline(model, scheduler).save_pretrained(_OUT.value)


if __name__ == "__main__":
    app.run(main)
