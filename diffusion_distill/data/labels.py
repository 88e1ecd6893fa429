"""The labels of a folder's images: its subfolders, or what a dataset.json says."""

import collections
import itertools
import re

import ml_collections
import numpy as np

from diffusion_distill.data import fields, splits
from diffusion_distill.data.source import checked_labels
from diffusion_distill.data.tree import LABELS_FILE, PREPARED, WORKDIR, Tree
from diffusion_distill.errors import UserError
from diffusion_distill.storage.files import read_json
from diffusion_distill.terminal.console import say_once

_WITHOUT = ("; ", fields.FOLDER_LABELS, "=False takes the images without labels")


def labels_of(tree: Tree, config: ml_collections.ConfigDict) -> tuple[np.ndarray, int]:
    """(int32 [N], one for each of tree.images; how many labels there are, 0 for data without).

    A dataset.json is that of EDM and StyleGAN: {"labels": [[path, label], ...], or null}. Raises
    UserError where an image has no label, or a label no image, or where subfolders are numbered as
    parts of one set are.
    """
    if not config.folder_labels:
        return _none(tree)
    if (LABELS_FILE,) in tree.others:
        pairs = read_json(tree.root / LABELS_FILE)
        pairs = pairs.get("labels", 0) if isinstance(pairs, dict) else 0
        if pairs is None:
            return _none(tree)
        if isinstance(pairs, list) and all(isinstance(p, list) and len(p) == 2 for p in pairs):
            return _of_pairs(tree, {str(name).replace("\\", "/"): label for name, label in pairs})
        say_once(
            f"{tree.root / LABELS_FILE} is not read: it has no list of labels, [path, label] each"
        )
    return _of_subfolders(tree, config.split)


def _none(tree: Tree) -> tuple[np.ndarray, int]:
    return np.zeros(len(tree.images), np.int32), 0


def _of_pairs(tree: Tree, label_of: dict[str, object]) -> tuple[np.ndarray, int]:
    path, names = tree.root / LABELS_FILE, ["/".join(parts) for parts in tree.images]
    if missing := [name for name in names if name not in label_of]:
        count = f"{path} has no label for {len(missing)} of {len(names)} images"
        raise UserError(f"{count}, {missing[0]} for one", *_WITHOUT)
    if gone := len(label_of) - len(names):
        say_once(f"{path}: {gone:,} images that have a label there are not in {tree.root}")
    try:
        labels = np.array([label_of[name] for name in names])
        return checked_labels(labels, len(names), None, str(path))
    except ValueError as error:  # of NumPy, for lists of several lengths, or our own
        raise UserError(*getattr(error, "parts", (f"{path}: {error}",)), *_WITHOUT) from None


def _of_subfolders(tree: Tree, split: str) -> tuple[np.ndarray, int]:
    within = collections.defaultdict(list)  # names of the images in each subfolder
    for *above, name in tree.images:
        if not above:
            beside = f"{tree.root} has images beside its subfolders, {name} for one; with "
            must = " each must be in a subfolder, whose place is its label"
            raise UserError(beside, fields.FOLDER_LABELS, must)
        within[above[0]].append(name)
    ours = {p[0] for p, what in tree.left_out.items() if what in (WORKDIR, PREPARED)}
    for name in tree.folders:
        if name not in within and name not in ours:
            raise UserError(f"{tree.root / name} has no images: a label would have none")
    if split != splits.ALL and _are_parts(within):
        raise UserError(
            f"{tree.root} has {', '.join([*within][:3])}, ..., numbered on as parts of one set: ",
            fields.FOLDER_LABELS,
            "=False where they are that, or ",
            fields.SPLIT,
            f"={splits.ALL} where each is a label",
        )
    if all(map(str.isdecimal, within)) and [*within] != sorted(within, key=int):
        first = ", ".join([*within][:4])
        say_once(f"{tree.root}: labels 0, 1, 2, 3, ... are its subfolders {first}, ...: by name")
    counts = [len(names) for names in within.values()]
    return np.repeat(np.arange(len(counts), dtype=np.int32), counts), len(counts)


def _are_parts(within: dict[str, list[str]]) -> bool:
    """Whether subfolders are called as parts of one set are, and their images numbered on.

    00000/img00000999.png, 00001/img00001000.png; as labels each may well begin anew.
    """
    if len(within) < 2:
        return False
    if all(re.fullmatch(r"(?i)(parts?|shards?|chunks?)[-_. ]?\d+", name) for name in within):
        return True
    if not all(re.fullmatch(r"\d{4,}", name) for name in within):
        return False
    numbers = [[re.findall(r"\d+", name) for name in names] for names in within.values()]
    if not all(found for part in numbers for found in part):
        return False
    spans = [[int(found[-1]) for found in part] for part in numbers]
    return all(max(a) < min(b) for a, b in itertools.pairwise(spans))
