"""The commands as a person types them: mistakes end in one line and a non-zero exit."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.interop import export
from diffusion_distill.runs.network import Network
from tests.commands import ROOT, run
from tests.conftest import tiny_config

CONFIG = "--config=configs/digits_distill.py:tiny"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CONFIG], "error: --workdir must be given"),
        (["--workdir=x"], "error: --config must be given"),
        ([CONFIG, "--workdir=x", "y"], "error: unexpected argument 'y'"),
        ([CONFIG, "--workdir=x", "--nope=1"], "error: Unknown command line flag 'nope'"),
        ([CONFIG, "--workdir=x", "--config.train.batch_sizee=3"],
         "a field that is not there: batch_sizee. Did you mean batch_size"),
        ([CONFIG, "--workdir=x", "--config.train.batch_size=abc"],
         "flag --config.train.batch_size=abc: invalid literal for int()"),
        ([CONFIG, "--workdir=x", "--config.train.batch_size=-3"],
         "error: config.train.batch_size is -3; it must be at least 1"),
        ([CONFIG, "--workdir=x", "--config.teacher=y"],
         "error: --config.teacher is a section; give its fields: --config.teacher.dropout=..."),
        ([CONFIG, "--workdir=x", "--config.eval.metrics[0]=kid"], "not a valid index"),
        ([CONFIG, "--workdir=x", "--config.eval.metrics=fd,kid"],
         """config.eval.metrics is ('fd,kid',); it must be one or more of fd, kid, """
         """precision_recall, inception_score: a tuple, as in "('fd', 'kid')\""""),
        (["--config=FINISHED/config.json", "--workdir=x"],
         "/config.json must name a config file in Python, FILE.py; a run's config.json is read by"),
        (["--config=configs/none.py", "--workdir=x"], "No such file or directory"),
        ([f"{CONFIG}2", "--workdir=x"], "this config has the variants guided and tiny, not tiny2"),
        ([CONFIG, "--workdir=/dev/null/x"], "error: /dev/null/x: Not a directory"),
        ([CONFIG, "--workdir=/proc/x"], "error: /proc/x: No such file or directory"),
    ],
)  # fmt: skip
def test_mistakes_in_main(finished, arguments, message):
    done = run("main", *(a.replace("FINISHED", str(finished[0])) for a in arguments))
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert message in lines[-1]
    assert len(lines) == 1
    assert not (ROOT / "x").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(:", "invalid syntax"),
        ("import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
        ("x = 1", "no attribute 'get_config'"),
        ("def get_config(): return 3", "config"),
        ("def get_config(): raise KeyError", "KeyError"),
        ("def get_config(): return null", "NameError"),
    ],
)
def test_mistakes_in_a_config_file(tmp_path, content, message):
    (tmp_path / "mine.py").write_text(content + "\n")
    done = run("main", f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert message in done.stderr
    assert not (tmp_path / "run").exists()


def test_no_permission_to_write(tmp_path):
    """As a user without root's rights, whoever runs the test; and the command itself, as typed."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    script = (
        "import ctypes, sys; libc = ctypes.CDLL(None);"
        "libc.prctl(24, 1, 0, 0, 0);"  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE
        "import os; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", script, "-m", "diffusion_distill.main", CONFIG,
               f"--workdir={closed}/run"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip() == f"error: {closed}/run: Permission denied"


def test_sample_writes_a_grid_arrays_or_a_folder(finished, tmp_path):
    workdir = finished[0]
    common = ["--num_steps=2", "--num_images=12", "--seed=5", "--labels=3,4"]
    for out in ("grid.PNG", "images.NPZ", "folder"):
        done = run("sample", f"--workdir={workdir}", *common, f"--out={tmp_path / 'new' / out}")
        assert done.returncode == 0, done.stderr
    arrays = np.load(tmp_path / "new/images.NPZ")
    assert arrays["images"].shape == (12, 8, 8, 1)
    assert arrays["images"].dtype == np.uint8
    np.testing.assert_array_equal(arrays["labels"], [3, 4] * 6)
    files = sorted((tmp_path / "new/folder").iterdir())
    assert [f.name for f in files] == [f"{n:02d}.png" for n in range(12)]
    for file, image in zip(files, arrays["images"], strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), image[..., 0])
    grid = np.asarray(Image.open(tmp_path / "new/grid.PNG"))
    np.testing.assert_array_equal(grid[1:33:4, 1:33:4], arrays["images"][0, ..., 0])


def test_sampling_a_network_without_labels(tmp_path):
    config = tiny_config()
    config.model.class_conditional = False
    network = Network.untrained(config, (8, 8, 1), 0, 1, make_mesh())
    params = jax.tree.map(jnp.zeros_like, network.params)
    export.write(dataclasses.replace(network, params=params), tmp_path / "export")
    common = [f"--workdir={tmp_path / 'export'}", "--num_images=3", f"--out={tmp_path / 'x.npz'}"]
    done = run("sample", *common)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "x.npz")["labels"], [0, 0, 0])
    refused = run("sample", *common, "--labels=0")
    assert "this network was trained without" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_steps=3", "--out=x"], "no stage of 3 steps; finished stages: teacher (4 steps)"),
        (["--num_steps=2"], "--out must be given"),
        (["--num_steps=2", "--out=x", "--labels=3,12"], "label 12 is out of range 0 to 9"),
        (["--num_steps=2", "--out=x", "--labels=a"], "--labels=a must be integers"),
        (["--num_steps=2", "--out=x", "--num_images=0"], "num_images is 0"),
        (["--num_steps=2", "--out=x", "--seed=-1"], "seed is -1"),
        (["--num_steps=two", "--out=x"], "--num_steps=two"),
        (["--num_steps=2", "--out=/dev/null/x.png"], "/dev/null"),
        (["--num_steps=2", "--out=setup.py"], "--out=setup.py is a file"),
        (
            ["--num_steps=2", "--out=colab"],
            "--out=colab has files already, progressive_distillation.ipynb for one; name",
        ),
        (["--num_steps=2", "--out=x.jpg"], ".jpg is not written; name a .png"),
    ],
)
def test_mistakes_in_sample(finished, arguments, message):
    done = run("sample", f"--workdir={finished[0]}", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (ROOT / "x").exists()


def test_evaluate_measures_what_the_run_measured(workdir):
    done = run("evaluate", f"--workdir={workdir}", "--num_steps=2")
    assert done.returncode == 0, done.stderr
    assert "fd_pixels100_train at 2 steps of ddim: " in done.stdout
    value = float(done.stdout.split("ddim: ")[1].split()[0])
    rows = (workdir / "results.txt").read_text().splitlines()
    (row,) = [row for row in rows if row.startswith("| student_0002")]
    assert float(row.split("|")[6]) == pytest.approx(value, abs=0.01)
    refused = run("evaluate", f"--workdir={workdir}", "--num_images=1")
    assert refused.stderr == "error: --num_images is 1; it must be at least 2\n"


def test_a_terminal_that_knows_no_such_sign_ends_nothing():
    script = "from diffusion_distill.terminal import cli; cli.run(lambda words: print('1 ± 2'))"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True,
                          env=environment)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "1 \\xb1 2\n")


def test_help_names_the_flags():
    done = run("sample", "--help")
    assert "--num_steps" in done.stdout + done.stderr
