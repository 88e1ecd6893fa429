"""The command that measures: once as a person types it, and what it hands its flags to."""

import numpy as np
import pytest
from PIL import Image

from configs.digits_distill import get_config
from diffusion_distill.config import base
from diffusion_distill.data import sources
from diffusion_distill.data.source import from_arrays
from diffusion_distill.errors import UserError
from diffusion_distill.evaluate import Chosen, add_row, evaluate_images, evaluate_stage
from diffusion_distill.interop.load import load_sampler
from diffusion_distill.runs.workdir import Workdir
from diffusion_distill.storage.files import read_rows
from tests import commands

CONFIG = "--config=configs/digits_distill.py:tiny"
DIGITS = sources.digits()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """(a folder of 200 real digits, an npz of the other ones), as a person gives them."""
    folder, images = tmp_path_factory.mktemp("digits") / "folder", DIGITS.images()
    folder.mkdir()
    for n, image in enumerate(images[:200]):
        Image.fromarray(image[..., 0]).save(folder / f"{n:03d}.png")
    np.savez(folder.parent / "others.npz", images=images[200:])
    return str(folder), str(folder.parent / "others.npz")


@pytest.fixture
def config():
    """The tiny digits: what --config would read."""
    return get_config("tiny")


def pixels_config(*metrics):
    config = base()
    config.eval.features, config.eval.metrics = "pixels", metrics
    return config


def test_a_stage_by_several_seeds(workdir):
    common = [f"--workdir={workdir}", "--num_steps=1", "--num_images=60"]
    done = commands.run("evaluate", *common, "--seeds=2", "--metrics=fd,kid", "--seed=4")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if " at 1 steps of ddim: " in line]
    assert [line.split(" at ")[0] for line in lines] == [
        f"{seed}{metric}"
        for seed in ("seed 4: ", "seed 5: ", "")
        for metric in ("fd_pixels60_train", "kid_pixels60_train", "label_agreement")
    ]
    rows = read_rows(workdir / "evaluations.jsonl")
    assert [row["seed"] for row in rows] == [4, 5]
    values = [row["fd_pixels60_train"] for row in rows]
    assert values[0] != values[1]
    mean, spread = np.mean(values), abs(values[0] - values[1]) / np.sqrt(2)
    assert f"fd_pixels60_train at 1 steps of ddim: {mean:.4f} ± {spread:.4f}" in done.stdout
    assert not any((workdir / "evaluating").iterdir())


def test_a_stage_against_anybodys_images_needs_no_data(workdir, digits):
    """Nor has it a judge of labels, whom only the data could teach."""
    config = Workdir.open(workdir).config
    config.eval.num_images, config.data.name, config.data.path = 60, "npz", "nowhere"
    (row,) = evaluate_stage(config, Chosen(str(workdir), 1), reference=digits[1])
    assert row["metrics"] == ["fd_pixels60_vs_others"]
    assert (row["stage"], row["num_steps"], row["sampler"]) == ("student_0001", 1, "ddim")
    assert row["reference"]["count"] == 1597
    assert "label_agreement" not in row
    assert read_rows(workdir / "evaluations.jsonl") == [row]


def test_a_row_names_the_stage_that_was_sampled(workdir, digits, monkeypatch):
    """Also where the last finished stage is wanted, and another is finished meanwhile."""
    names = iter(["teacher", "student_0001"])
    found = Workdir.finished_stage
    monkeypatch.setattr(Workdir, "finished_stage", lambda run, steps=None, name=None: found(
        run, steps, name or next(names)))  # fmt: skip
    config = Workdir.open(workdir).config
    config.eval.num_images, config.data.path = 60, "nowhere"
    (row,) = evaluate_stage(config, Chosen(str(workdir)), reference=digits[1])
    sampler = load_sampler(workdir, stage="teacher")
    assert (row["stage"], row["sha256"]) == ("teacher", sampler.fingerprint())


def test_two_sets_and_their_statistics(tmp_path, digits, capsys):
    """Images against images, and against their mu and sigma, are the same distance."""
    folder, npz = digits
    out = tmp_path / "out.jsonl"
    evaluate_images(pixels_config("fd", "precision_recall"), folder, reference=npz, out=out)
    pixels = DIGITS.images()[200:].reshape(1597, -1) / 127.5 - 1
    np.savez(tmp_path / "stats.npz", mu=pixels.mean(0), sigma=np.cov(pixels, rowvar=False))
    statistics = str(tmp_path / "stats.npz")
    evaluate_images(pixels_config("fd", "kid"), folder, reference=statistics, out=out)
    assert "kid: vs_stats has statistics only" in capsys.readouterr().out
    first, second = read_rows(out)
    assert first["metrics"] == [
        "fd_pixels200_vs_others", "precision_pixels200_vs_others", "recall_pixels200_vs_others",
    ]  # fmt: skip
    assert second["metrics"] == ["fd_pixels200_vs_stats"]
    value = first["fd_pixels200_vs_others"]
    assert second["fd_pixels200_vs_stats"] == pytest.approx(value, abs=1e-4)
    assert 0.3 < value < 3
    assert first["reference"]["count"] == 1597
    assert first["reference"]["fingerprint"] != second["reference"]["statistics"]
    assert first["fingerprint"] == second["fingerprint"]
    assert first["precision_pixels200_vs_others"] > 0.7


def test_images_against_the_data_of_a_config_are_drawn_from_all_of_them(config, tmp_path, capsys):
    """Not the first of them, which here are all of a few classes."""
    by_class = DIGITS.images()[np.argsort(DIGITS.labels, kind="stable")]
    np.savez(tmp_path / "by_class.npz", images=by_class)
    (row,) = evaluate_images(config, str(tmp_path / "by_class.npz"), 500)
    assert "images: 500 of 1,797, drawn at random" in capsys.readouterr().out
    assert row["fd_pixels500_train"] < 1.0  # 500 drawn at random: 0.3; the first 500: 7


def test_rows_are_added_to_rows_alone_and_this_is_found_out_first(config, tmp_path):
    """What a person has in a file stays as it is."""
    mine = {"notes.txt": "mine, no newline", "cut.jsonl": '{"a": 1}\n{"b', "list.jsonl": "[1]\n"}
    for name, content in mine.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match="must end in .jsonl|damaged in line 2|but no rows"):
            evaluate_images(config, "nowhere", out=tmp_path / name)
        with pytest.raises(UserError, match="must end in .jsonl|damaged in line 2|but no rows"):
            evaluate_stage(config, Chosen("nowhere"), out=tmp_path / name)
        assert (tmp_path / name).read_text() == content
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(IsADirectoryError):
        evaluate_images(config, "nowhere", out=tmp_path / "folder.jsonl")
    (tmp_path / "a.jsonl").write_text('{"a":  1}')
    add_row(tmp_path / "a.jsonl", {"b": (2, 3)})
    add_row(tmp_path / "a.jsonl", {"b": (2, 3)})  # as after a stop
    assert (tmp_path / "a.jsonl").read_text() == '{"a":  1}\n{"b": [2, 3]}\n'


def test_each_row_is_kept_when_it_is_measured_and_seeds_are_checked_before(workdir, monkeypatch):
    config = Workdir.open(workdir).config
    config.eval.num_images, config.eval.seed = 60, 2**31 - 2
    with pytest.raises(UserError, match="seed is 2147483648; it must be"):
        evaluate_stage(config, Chosen(str(workdir), 1), num_seeds=3)
    assert not (workdir / "evaluations.jsonl").exists()

    def show(*shown):
        raise UnicodeEncodeError("ascii", "±", 0, 1, "ordinal not in range")

    monkeypatch.setattr("diffusion_distill.evaluate.show", show)
    with pytest.raises(UnicodeEncodeError):
        evaluate_stage(config, Chosen(str(workdir), 1), num_seeds=2)
    (kept,) = read_rows(workdir / "evaluations.jsonl")
    monkeypatch.undo()
    rows = evaluate_stage(config, Chosen(str(workdir), 1), num_seeds=2)
    assert rows[0] == kept
    assert read_rows(workdir / "evaluations.jsonl") == rows


def test_other_data_than_the_runs_is_refused(workdir, monkeypatch):
    fewer = from_arrays(DIGITS.images()[:1700], DIGITS.labels[:1700], name="digits")
    monkeypatch.setitem(sources.SOURCES, "digits", lambda config: fewer)
    with pytest.raises(UserError, match="other training images .*: count: 1797 -> 1700"):
        evaluate_stage(Workdir.open(workdir).config, Chosen(str(workdir), 1))


@pytest.mark.parametrize(
    ("changed", "arguments", "message"),
    [
        ({}, {"count": 201}, "201 images were asked for; "),
        ({"metrics": ("fid",)}, {}, r"config.eval.metrics is \('fid',\)"),
        ({}, {"reference": "{small}"}, "has images of 8x8x1, the reference "),
        ({}, {"reference": "nowhere"}, "nowhere is neither a folder of images"),
        ({"split": "test"}, {}, "digits have only 'train'"),
    ],
)
def test_mistakes(config, tmp_path, digits, changed, arguments, message):
    np.savez(tmp_path / "small.npz", images=np.zeros((9, 4, 4, 1), np.uint8))
    config.eval.update(changed)
    if "reference" in arguments:
        arguments["reference"] = arguments["reference"].format(small=tmp_path / "small.npz")
    with pytest.raises(UserError, match=message):
        evaluate_images(config, digits[0], **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: --workdir must be given"),
        (["--images=a"], "--images is compared with --reference, or the data of --config"),
        (["--images=a", CONFIG, "--seeds=3"], "--seeds means nothing with --images"),
        (
            ["--images=a", "--reference=b", "--split=test"],
            "--split means nothing with --reference",
        ),
        (["--images={folder}", CONFIG, "--metrics=fid"], "config.eval.metrics is ('fid',)"),
    ],
)
def test_mistakes_in_flags(digits, arguments, message):
    done = commands.run("evaluate", *[argument.format(folder=digits[0]) for argument in arguments])
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
