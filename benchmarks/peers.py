"""Training and sampling beside what one would use in PyTorch: same batch, same machine, in turn.

    pip install -e '.[peers]'
    python -m benchmarks.peers

CIFAR-10's network of the paper, at its width and at about a third of it, against

- diffusers' UNet2DModel, which can be made the same network within 2% of its parameters (resampling
  inside residual blocks, scale and shift by the embedding, attention of one head at 16 and 8
  pixels), with its DDIMScheduler;
- denoising-diffusion-pytorch's Unet, which has two residual blocks at each resolution and other
  attention: its width is chosen to match the parameter count, so that its operations differ.

A training step is a whole one: noise, network, loss, gradient, clipping, AdamW, moving average;
without dropout. Sampling goes from noise to images in so many DDIM steps. What is compared runs in
turn, each peer in a process of its own; a time is a median. On an accelerator PyTorch's networks go
through torch.compile and autocast; on a CPU they run as they are, in float32, which both use.
"""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Iterator
from unittest import mock

import numpy as np
from absl import flags

from benchmarks import measuring
from benchmarks.contenders import (
    Contender,
    check_installed,
    diffusers,
    lucidrains,
    matching_width,
    ours,
)
from diffusion_distill.devices import onednn
from diffusion_distill.errors import UserError
from diffusion_distill.terminal import cli

HEADER = [
    "network", "width", "parameters, M", "batch", "training, s", "images/s", "beside ours",
    "sampling, s", "images/s", "beside ours",
]  # fmt: skip


@contextlib.contextmanager
def apart(name: str, *sizes: int) -> Iterator[Contender]:
    """A peer in a process of its own, as its users run it.

    In one with our oneDNN it would share that one's OpenMP, whose threads sleep where they wait.
    """
    context = multiprocessing.get_context("spawn")
    connection, other_end = context.Pipe()
    process = context.Process(target=_serve, args=(other_end, name, *sizes), daemon=True)
    with mock.patch.dict(os.environ, {onednn.ONEDNN: "0"}):
        os.environ.pop("OMP_WAIT_POLICY", None)
        process.start()
    other_end.close()  # so that waiting ends where the process does

    def ask(what):
        connection.send(what)
        connection.recv()

    try:
        parameters = connection.recv()
        yield Contender(parameters, lambda: ask("train"), lambda: ask("sample"))
    finally:
        process.terminate()
        process.join()


def _serve(connection, name: str, *sizes: int) -> None:
    """Makes a peer, says how many parameters it has, and makes the calls that are asked for."""
    check_installed()
    import torch

    torch.manual_seed(0)
    contender = {"diffusers": diffusers, "lucidrains": lucidrains}[name](*sizes)
    connection.send(contender.parameters)
    while True:
        getattr(contender, connection.recv())()
        connection.send(None)


def compare(channels: int, num_blocks: int, batch: int, num_steps: int, repeats: int) -> list[dict]:
    """The three networks at one width, in turn: a dict of numbers for each, ours first."""
    sizes = num_blocks, batch, num_steps
    with contextlib.ExitStack() as stack:
        found = {"ours": ours(channels, *sizes)}
        widths = {"ours": channels, "diffusers": channels}
        widths["lucidrains"] = matching_width(found["ours"].parameters)
        for name in ("diffusers", "lucidrains"):
            found[name] = stack.enter_context(apart(name, widths[name], *sizes))
        calls = {}
        for name, contender in found.items():
            calls |= {(name, "train"): contender.train, (name, "sample"): contender.sample}
        for call in calls.values():  # once for what is made at the first call
            call()
        seconds = measuring.alternating(calls, repeats)
    return [
        {
            "network": name,
            "channels": widths[name],
            "parameters": contender.parameters,
            "batch_size": batch,
            "train_seconds": seconds[name, "train"],
            "sample_seconds": seconds[name, "sample"],
        }
        for name, contender in found.items()
    ]


def rows(found: list[dict]) -> list[list[str]]:
    """The table's body; "beside ours" is images a second over ours."""
    body = []
    for row in found:
        if row["network"] == "ours":
            first = row
        cells = []
        for what in ("train_seconds", "sample_seconds"):
            seconds, ratio = row[what], first[what] / row[what]
            cells += [f"{seconds:.2f}", f"{row['batch_size'] / seconds:,.1f}", f"{ratio:.2f}"]
        body.append(
            [row["network"], str(row["channels"]), f"{row['parameters'] / 1e6:.1f}",
             str(row["batch_size"]), *cells]
        )  # fmt: skip
    return body


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    measuring.start()
    check_installed()

    widths = measuring.integers("channels", flags.FLAGS.channels)
    sizes = measuring.integers("batch_sizes", flags.FLAGS.batch_sizes)
    if len(widths) != len(sizes):
        raise UserError(f"there are {len(widths)} --channels and {len(sizes)} --batch_sizes")
    np.random.seed(0)
    found = []
    for channels, batch in zip(widths, sizes, strict=True):
        found += compare(
            channels,
            cli.at_least("num_blocks", flags.FLAGS.num_blocks, 1),
            batch,
            cli.at_least("num_steps", flags.FLAGS.num_steps, 1),
            cli.at_least("repeats", flags.FLAGS.repeats, 1),
        )
    versions = {name: sys.modules[name].__version__ for name in ("torch", "diffusers")}
    record = {"num_steps": flags.FLAGS.num_steps, "versions": versions, "networks": found}
    measuring.publish(flags.FLAGS.out, record, HEADER, rows(found))


if __name__ == "__main__":
    flags.DEFINE_list("channels", ["96", "256"], "Widths; multiples of 32.")
    flags.DEFINE_list("batch_sizes", ["16", "8"], "Images at once, for each width.")
    flags.DEFINE_integer("num_blocks", 3, "Residual blocks at a resolution; the paper's: 3.")
    flags.DEFINE_integer("num_steps", 4, "Sampling steps.")
    flags.DEFINE_integer("repeats", 7, "Times that each is run.")
    flags.DEFINE_string("out", "runs/benchmarks/peers.json", "File for the numbers.")
    cli.run(main)
