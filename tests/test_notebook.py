"""The notebook: it runs from top to bottom, and what it is stored with is from such a run.

To store it anew, run it in a folder without `runs` (`jupyter execute --inplace`, or Restart and run
all), and put machine and date into its first cell.
"""

import base64
import datetime
import io
import json
import os
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient
from PIL import Image

from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.models.build import abstract_params, build_unet
from tests.interop.conftest import published_config
from tests.interop.reference import random_weights, write_published

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "colab" / "progressive_distillation.ipynb"

# How many pictures each code cell draws.
PICTURES = {
    "install": 0,
    "imports": 0,
    "schedule": 1,
    "noise": 1,
    "errors": 1,
    "errors-seen": 1,
    "train": 0,
    "target": 1,
    "halvings": 2,
    "distances": 1,
    "guidance": 1,
    "published": 0,
}

# A config for a published file of the tiny network.
TINY = """
from configs import digits_distill

def get_config():
    config = digits_distill.get_config("tiny")
    config.model.channel_multipliers, config.model.attention_resolutions = (1,), ()
    config.data.image_size = 8
    return config
"""

# Appended to the notebook: what it found, for the test.
FOUND = """
import json
print(json.dumps({
    "logsnr": list(logsnrs), "error_x": error_x, "residuals": residuals,
    "students": distance_students, "teacher": distance_teacher,
    "drift": [float(np.abs(rows[name] - students["teacher, 8 steps"]).mean())
              for rows, name in ((students, "student, 1 step"), (undistilled, "teacher, 1 step"))],
    "samples": samples.shape,
}))
"""


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, nbformat.NO_CONVERT)


def code_cells(notebook):
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def pictures(cell):
    """The pictures that a cell drew, each as an array of its pixels."""
    encoded = [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(e)))) for e in encoded]


def printed(cell):
    return "".join(o.text for o in cell.outputs if o.output_type == "stream")


def assert_drawn(cell, count):
    drawn = pictures(cell)
    assert len(drawn) == count, cell.id
    assert all(picture.std() > 10 for picture in drawn), f"{cell.id}: an empty picture"


@pytest.mark.usefixtures("optimized")  # it trains for minutes
@pytest.mark.slow
def test_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    write_kernel_spec(tmp_path / "kernels" / "this_python")
    for name in ("JUPYTER_PATH", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    copy = nbformat.from_dict(notebook)
    cells = code_cells(copy)
    cells["published"].source = replaced(cells["published"], tmp_path)
    copy.cells.append(nbformat.v4.new_code_cell(FOUND))
    NotebookClient(
        copy,
        timeout=1200,
        kernel_name="this_python",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute(env={**os.environ, "PYTHONPATH": str(ROOT)})

    for name, count in {**PICTURES, "published": 1}.items():
        assert_drawn(cells[name], count)
    assert printed(cells["install"]) == ""  # it is installed
    found = json.loads(printed(copy.cells[-1]))
    check_predictions(found)
    check_halvings(found)
    assert found["samples"][0] > 64


def replaced(cell, folder):
    """The source of the last cell for a file of the tiny network, which is put in the folder."""
    config = published_config()
    shapes = abstract_params(build_unet(config, 1, 10), (8, 8, 1), make_mesh())
    write_published(folder / "cifar_8", random_weights(shapes), 8)
    (folder / "tiny.py").write_text(TINY)
    theirs, ours = 'CONFIGS / "cifar10_distill.py"', 'Path("tiny.py")'
    assert theirs in cell.source
    return cell.source.replace(theirs, ours)


def check_predictions(found):
    """An error of 0.1 in eps grows by exp(-logSNR / 2) in x; one in v or x never grows."""
    expected = 0.1 * np.exp(-0.5 * np.array(found["logsnr"]))
    np.testing.assert_allclose(found["error_x"]["eps"], expected, rtol=0.05)
    for name in ("x", "v", "both"):
        assert max(found["error_x"][name]) < 0.105
    # Two steps as one: a few roundings of float32, of pixels of size 1. The last step is apart by
    # w, 1.2e-4, times the difference of two predictions.
    residuals = {int(i): residual for i, residual in found["residuals"].items()}
    assert residuals.pop(1) < 1e-3
    assert len(residuals) == 3
    assert max(residuals.values()) < 5e-6


def check_halvings(found):
    students, teacher = found["students"], found["teacher"]
    assert students.keys() == teacher.keys() == {"8", "4", "2", "1"}
    assert students["8"] == teacher["8"] < 1.0
    for n in ("4", "2", "1"):
        assert students[n] < teacher[n]
    assert students["1"] < 0.5 * teacher["1"]
    student, undistilled = found["drift"]
    assert student < undistilled  # from what the teacher draws in 8 steps, with the same noise


def test_is_valid_and_small(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert NOTEBOOK.stat().st_size < 750_000
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


def test_is_stored_as_it_ran(notebook):
    cells = code_cells(notebook)
    assert list(cells) == list(PICTURES)
    assert [c.execution_count for c in cells.values()] == list(range(1, len(cells) + 1))
    assert not any(o.output_type == "error" for c in cells.values() for o in c.outputs)
    for name, count in PICTURES.items():
        assert_drawn(cells[name], count)
    date = datetime.date.fromisoformat(printed(cells["imports"])[:10])
    assert f"{date.day} {date:%B %Y}" in notebook.cells[0].source
    train = cells["train"]
    assert "stage 4 of 4" in printed(train)  # trained there, not found finished
    for stage, field in {
        "teacher": "teacher.updates",
        "student_0004": "distill.updates",
        "student_0001": "distill.updates_last_rounds",
    }.items():
        updates = re.search(rf"config\.{field} = (\d+)", train.source).group(1)
        assert re.search(rf"^\| {stage} +\| +\d \| +{updates} \|", printed(train), re.M), stage


def test_names_no_folder_of_a_machine(notebook):
    for cell in notebook.cells:
        text = cell.source + (printed(cell) if cell.cell_type == "code" else "")
        assert re.findall(r"(?<![\w.:/*])~?/\w+/[\w/]+", text) == [], cell.id


def test_what_it_names_is_there(notebook):
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    lines = re.findall(r"^(?:Functions?|Class): (.*?)(?:\n\n|\Z)", text, re.M | re.S)
    assert len(lines) >= 6
    for line in lines:
        files = re.findall(r"`(diffusion_distill/[\w/]+\.py)`", line)
        code = "".join((ROOT / file).read_text() for file in files)
        names = re.findall(r"`(\w+)`", line)
        assert names
        for name in names:
            assert re.search(rf"(def|class) {name}\b", code), name
    for config in re.findall(r"configs/\w+\.py", text):
        assert (ROOT / config).is_file()
