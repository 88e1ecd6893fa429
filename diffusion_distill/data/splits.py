"""Which subfolders are splits, and no labels, by what they are called: `train2017`, `Testing`."""

import re
from collections.abc import Iterable
from pathlib import Path

from diffusion_distill.data import fields
from diffusion_distill.data.tree import Tree, has_images, is_anybodys, is_image, project_folder
from diffusion_distill.errors import UserError

ALL = "all"  # the split that takes a folder whole, whatever its subfolders are called
_ASKED = ("train", "val", "validation", "test")  # which of several folders it is must be sure

_PART = "~"  # before the rest of a word that only begins as a split does
# A word of a name: a split or two, what says nothing more, and the rest.
_WORD = re.compile(
    "(?P<train>training|train|trn)?(?P<val>validation|valid|val)?(?P<test>testing|test|tst)?"
    "(?:(?:sets?|splits?|datasets?|data|images?|imgs?|pics?|pictures?|photos?|lmdb|s|[ab])$)?"
    "(?P<rest>[a-z]*)"
)


def split_folder(root: Path, split: str) -> Path:
    """The subfolder that is a split, by its own name or by another that says the same.

    `root` itself where its subfolders are no splits, or where `split` is ALL or "". Raises
    UserError where they are others, or what may be splits stands beside what is none.
    """
    if not split or not root.is_dir():
        return root
    exact = root / split
    if split not in _ASKED and exact.is_dir():
        return exact
    found = {} if split == ALL else splits_in(root)
    if not found or split in found:
        return root / split if found else root
    same = [name for name in found if found[name] == _split_and_rest(split)[0]]
    if len(same) == 1:
        return root / same[0]
    has = f"has no split {split!r}; it has {', '.join(found)}"
    several = f"has {', '.join(same)}, and each may be the split {split!r}"
    one = f" to the name of one, or to {ALL} where they are labels"
    raise UserError(f"{root} {several if same else has}: set ", fields.SPLIT, one)


def splits_in(root: Path) -> dict[str, str]:
    """The subfolders that are splits, and what each is: {"Training": "train"}; {} for labels.

    Raises UserError where what is hardly anything but a split stands beside what is none.
    """
    names = sorted(filter(is_anybodys, (path.name for path in root.iterdir())))
    named = [name for name in names if _split_and_rest(name)[0] and not is_image(name)]
    splits, sure = _splits_among(name for name in named if _is_of_images(root / name))
    for name in names if splits else ():
        if name in splits:
            continue
        if is_image(name) or (_is_of_images(root / name) and has_images(root / name)):
            if not sure:
                return {}
            raise UserError(
                f"{root} has {', '.join(sure)}, which would be a split, beside {name}, which is "
                "none: give ",
                fields.PATH,
                f"={root / sure[0]} where it is a split, or ",
                fields.SPLIT,
                f"={ALL} where it is a label",
            )
    return splits


def mixed(tree: Tree) -> str:
    """Where splits are in a folder that is taken whole, such as cats/train and cats/test; ""."""
    subfolders = {}
    for folder in {parts[:-1] for parts in tree.images}:
        for depth, name in enumerate(folder):
            subfolders.setdefault(folder[:depth], set()).add(name)
    for folder, names in sorted(subfolders.items()):
        splits, sure = _splits_among(sorted(names))
        if len({splits[name] for name in sure}) > 1:
            return f"{tree.root.joinpath(*folder)} has {', '.join(sure)}"
    return ""


def _is_of_images(folder: Path) -> bool:
    """Whether it is a folder that may be of images: no workdir, say."""
    return folder.is_dir() and not project_folder(lambda name: (folder / name).exists())


def _splits_among(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """(the split of each name that may be one's, those of them that are hardly anything else).

    The latter say nothing but the split, or the same as the name of another: church_train and
    church_val, where bullet_train beside ship is a label, and bullet_train beside freight_train.
    """
    found = {name: pair for name in names if (pair := _split_and_rest(name))[0]}
    of_rest = {}
    for split, rest in found.values():
        of_rest.setdefault(rest, set()).add(split)
    sure = [name for name, (_, rest) in found.items() if not rest or len(of_rest[rest]) > 1]
    sure.sort(key=lambda name: found[name][0] != "train")  # which then is what messages propose
    maybe = {n: split for n, (split, rest) in found.items() if n in sure or _PART not in rest}
    of_one_split = not sure and len(maybe) > 1 == len(set(maybe.values()))
    return {} if of_one_split else maybe, sure


def _split_and_rest(name: str) -> tuple[str, str]:
    """(train, val, test, or several as train+val, or "" for none; what else the name says).

    ("train", "bullet") of bullet-train2, ("val", "~ley") of valley.
    """
    found, rest = set(), []
    for word in re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name):
        parts = _WORD.fullmatch(word.lower()).groupdict()
        more, here = parts.pop("rest"), [split for split, part in parts.items() if part]
        rest += [_PART * bool(here) + more] if len(more) > 1 else []
        found.update(here)
    return "+".join(s for s in ("train", "val", "test") if s in found), " ".join(rest)
