"""Writes the tables of docs/config.md: `python docs/make_config.py`.

In diffusion_distill, what a field is stands beside it in config.py, or above it; what is accepted
in validate/rows.py; the paper's values in paper.py. The text before the first table is the page's
own.
"""

import inspect
import re
from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distill import paper
from diffusion_distill.config import base
from diffusion_distill.validate.rows import ROWS

PAGE = Path(__file__).parent / "config.md"
HEAD = "| field | default | accepted | paper | what it is |\n| --- | --- | --- | --- | --- |\n"

# The sections that the paper has values of, and the fields of others; of those sections it has no
# such field as these, or no value of it that is known to us.
SECTIONS = ("diffusion", "model", "train", "teacher", "distill")
_OTHERS = ("data.image_size", "data.random_flip")
_UNKNOWN = (
    "model.num_groups model.dtype train.adam_b1 train.adam_b2 train.adam_eps "
    "train.checkpoint_every train.checkpoints_kept teacher.lr_schedule distill.teacher "
    "distill.warmup distill.ema_decay model.guidance teacher.label_dropout"
).split()


def comments() -> dict[str, str]:
    """What base() says of each section and field, by its path."""
    found, above = {}, []
    for line in inspect.getsource(base).splitlines():
        code, _, comment = line.strip().partition("# ")
        above.append(comment)
        if path := re.match(r"config\.([\w.]+) = ", code):
            found[path[1]] = " ".join(filter(None, above))
        if code:
            above = []
    return found


def value_text(value) -> str:
    """A value as a person writes it in a config: 50_000, 2e-4, "x"."""
    if isinstance(value, float) and 0 < value < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    if type(value) is int and value >= 10_000:
        return f"{value:_}"
    return repr(value).replace("'", '"')


def configs() -> list[ConfigDict]:
    """The paper's: CIFAR-10, ImageNet 64, LSUN 128."""
    return [paper.cifar10(), paper.imagenet64(), paper.lsun128("church")]


def paper_text(path: str) -> str:
    """The values of the paper's configs, one where all are the same; a dash where it has none."""
    if path in _UNKNOWN or (path not in _OTHERS and path.split(".")[0] not in SECTIONS):
        return "—"
    values = [f"`{value_text(config[path])}`" for config in configs()]
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def tables() -> str:
    """A heading and a table for each section of a config."""
    defaults, about = base(), comments()
    headings = {"": "At the top"}
    lines = {}
    for path, row in ROWS.items():
        section = path.rpartition(".")[0]
        cells = (f"`{path}`", f"`{value_text(defaults[path])}`", row.told, paper_text(path))
        lines.setdefault(section, []).append(f"| {' | '.join([*cells, about[path]])} |\n")
        headings.setdefault(section, f"{section}: {about.get(section)}")
    return "\n".join(f"## {headings[s]}\n\n{HEAD}{''.join(lines[s])}" for s in lines)


def page() -> str:
    """The whole page: its own text, as it stands, and the tables."""
    return PAGE.read_text().partition("## ")[0] + tables()


if __name__ == "__main__":
    PAGE.write_text(page())
