"""docs/config.md says of every field what base(), validate/rows.py and paper.py do."""

import ast
import re

import pytest

from diffusion_distill.config import base
from diffusion_distill.errors import UserError
from diffusion_distill.validate import validate
from docs import make_config

# path -> the other cells of its row: default, accepted, paper, what it is.
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in make_config.PAGE.read_text().splitlines()
    if line.startswith("| `")
    for cells in [line.strip("| ").split(" | ")]
}
# Of each way to say what is accepted: values that are, and values that are not.
EXAMPLES = {
    "text": (["", "some"], [3, None]),
    "`True`, `False`": ([True, False], [1, "yes"]),
    "integer from 0": ([0], [-1, 1.5, "1", True]),
    "integer from 1": ([1], [0, 1.5, "1", True]),
    "integer from 2": ([2], [1, 2.5]),
    "integer from 2, or 0": ([0, 2], [-1, 1, 2.5]),
    "integer from 0 to 2147483647": ([0, 2**31 - 1], [-1, 2**31, 1.5]),
    "power of 2": ([1, 4], [0, -2, 3, 2.5]),
    "integers": ([(), (4, 8)], [(4.5,), 4, ("4",)]),
    "integers from 1": ([(1, 2)], [(), (0,), (1.5,), 1]),
    "numbers from 0 to 1": ([(), (0, 0.5, 1.0)], [(-0.1,), (1.1,), 0.5, ("0",)]),
    "number": ([3, -1.5], [float("inf"), float("nan"), "1"]),
    "number from 0": ([0, 2.5], [-0.1, float("inf"), float("nan"), "1"]),
    "number from 0, below 1": ([0, 0.5], [-0.1, 1, 1.0]),
    "number from 0 to 1": ([0, 0.5, 1], [-0.1, 1.1]),
    "numbers from 0": ([(), (0, 1.5)], [(-1,), ("1",), 2]),
    "(low, high), numbers from 0, or ()": (
        [(), (0, 4.0), (1, 1)],
        [(1,), (2, 1), (-1, 1), (0, float("inf")), 3],
    ),
}


def examples(accepted):
    """(values that must be accepted, values that must not be), from a cell."""
    if accepted in EXAMPLES:
        return EXAMPLES[accepted]
    start, of, listed = accepted.partition("of ")
    names = [int(name) if name.isdigit() else name for name in re.findall(r"`([^`]+)`", listed)]
    if start + of == "one of ":
        return names, ["no such", 7, True]
    assert start + of in ("one or more of ", "any of "), f"no form that is known: {accepted}"
    empty = [()]
    good, bad = [tuple(names), *((name,) for name in names)], [("no such",), names[0]]
    return (good + empty, bad) if start == "any " else (good, bad + empty)


def test_the_page_is_what_is_made():
    assert make_config.page() == make_config.PAGE.read_text(), "run python docs/make_config.py"


def test_every_field_is_there_with_its_default_and_a_text():
    defaults = base()
    fields = [
        f"{name}.{field}" if hasattr(defaults[name], "keys") else name
        for name in defaults
        for field in (defaults[name] if hasattr(defaults[name], "keys") else [name])
    ]
    assert sorted(ROWS) == sorted(fields)
    for path, (default, _, _, text) in ROWS.items():
        assert ast.literal_eval(default.strip("`")) == defaults[path], path
        assert text and "None" not in text, path


def test_the_papers_values_are_read_from_its_configs():
    assert ROWS["train.batch_size"][2] == "`128` / `2048` / `2048`"
    assert ROWS["teacher.learning_rate"][2] == "`2e-4` / `3e-4` / `3e-4`"
    assert ROWS["distill.updates"][2] == "`50_000`"


@pytest.mark.parametrize("path", sorted(ROWS))
def test_what_a_dash_stands_for_is_left_at_its_default(path):
    if ROWS[path][2] == "—" and path.split(".")[0] in make_config.SECTIONS:
        assert [config[path] for config in make_config.configs()] == [base()[path]] * 3


@pytest.mark.parametrize("path", sorted(ROWS))
def test_what_is_accepted_is_what_the_table_says(path):
    section, _, name = path.rpartition(".")

    def check(value):
        config = base()
        if path in ("teacher.label_dropout", "match.guidance"):  # what they need beside them
            config.model.class_conditional, config.teacher.label_dropout = True, 0.1
            config.match.updates = 1
        with config.ignore_type():
            (config[section] if section else config)[name] = value
            if (path, value) == ("model.num_heads", 0):  # then the other field is not
                config.model.head_dim = 64
            if path == "eval.baselines" and "ddim_diffusers" in value:
                config.model.architecture = "unet2d"  # the network that it is for
        validate(config)

    good, bad = examples(ROWS[path][1])
    for value in good:
        check(value)
    for value in bad:
        with pytest.raises(UserError, match=f"config.{path} is .*; it must be "):
            check(value)
