"""What docs/ and README.md name is there: files, headings, functions, fields, commands."""

import importlib
import re
from pathlib import Path

import pytest

from diffusion_distill.validate.rows import ROWS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]

pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)


def codes(text):
    """What stands between single backticks."""
    return re.findall(r"`([^`]+)`", text)


SECTIONS = {path.split(".")[0] for path in ROWS if "." in path}


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pages
def test_links_lead_somewhere(page):
    for label, target in re.findall(r"\[([^\]]+)\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        assert path.resolve().is_relative_to(ROOT), target
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target
        name = re.fullmatch(r"`(\w+)`", label)
        if name and path.suffix == ".py":  # a function is named by a link to its file
            dotted = ".".join(path.resolve().relative_to(ROOT).with_suffix("").parts)
            module = importlib.import_module(dotted)
            assert hasattr(module, name[1]), f"{name[1]} is not in {target}"


@pages
def test_fields_and_functions_named_in_text_are_there(page):
    for code in codes(re.sub(r"```.*?```", "", page.read_text(), flags=re.S)):
        path = re.fullmatch(r"(?:--config\.|config\.)?((?:[a-z]\w*\.)+\w+)(?:=.*)?", code)
        is_file = code.endswith((".json", ".safetensors"))
        if path and path[1].split(".")[0] in SECTIONS and not is_file:
            assert path[1] in ROWS, f"{code} is not a field"
        dotted = re.fullmatch(r"diffusion_distill((?:\.[a-z]\w*)+)\.(\w+)(?:\(.*\))?", code)
        if dotted:
            module = importlib.import_module(f"diffusion_distill{dotted[1]}")
            assert hasattr(module, dotted[2]), f"{code} is not there"


def commands(page):
    """The words of every command in a page's blocks that runs something of ours."""
    for block in re.findall(r"```[a-z]*\n(.*?)```", page.read_text(), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = line.split("  #")[0].split()
            if "python" in words:
                yield words[words.index("python") + 1 :]


@pages
def test_commands_name_modules_configs_and_flags_that_are_there(page):
    for words in commands(page):
        if words[0] == "-m":
            file = ROOT / (words[1].replace(".", "/") + ".py")
            file = file if file.exists() else file.with_suffix("") / "__main__.py"
        else:
            file = ROOT / words[0]
        assert file.is_file(), f"{' '.join(words)}: no {file}"
        defined = (
            f"{file.read_text()}{(ROOT / 'diffusion_distill' / 'terminal' / 'cli.py').read_text()}"
        )
        known = set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", defined))
        for word in words:
            flag = re.match(r"--(\w+)((?:\.\w+)*)(?:=(\S+))?$", word)
            if flag and flag[2]:
                assert flag[2][1:] in ROWS, f"{word} is not a field"
            elif flag:
                assert flag[1] in known, f"no flag {word}"
            if flag and flag[1] == "config" and not flag[2] and flag[3].startswith("configs/"):
                assert (ROOT / flag[3].split(":")[0]).is_file(), word


def test_the_check_of_commands_finds_them():
    assert any("diffusion_distill.main" in words for page in PAGES for words in commands(page))
