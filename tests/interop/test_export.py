"""Exported folders: enough to sample, to the bit; refused where damaged."""

import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import diffusion_distill
from diffusion_distill.devices.sharding import make_mesh
from diffusion_distill.errors import UserError
from diffusion_distill.interop import export
from diffusion_distill.runs.network import flatten, from_stage
from diffusion_distill.runs.workdir import Workdir
from tests.interop.test_given_teacher import assert_same_bits, copied, distilled_from, params

load = diffusion_distill.load_sampler


def exported(workdir, stage, out, dtype="float32"):
    run = Workdir.open(workdir)
    export.write(from_stage(run, run.finished_stage(name=stage), make_mesh()), out, dtype)
    return out


@pytest.fixture(scope="module")
def student(finished, tmp_path_factory):
    return exported(finished[0], "student_0002", tmp_path_factory.mktemp("export") / "new/out")


@pytest.fixture
def copy(student, tmp_path):
    """To damage."""
    return shutil.copytree(student, tmp_path / "copy")


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_images_are_those_of_the_workdir_to_the_bit(finished, student, sampler):
    images = load(student, sampler=sampler)(seed=5, num_images=30)
    expected = load(finished[0], 2, sampler=sampler)(seed=5, num_images=30)
    np.testing.assert_array_equal(images, expected)


def test_the_files_say_all_there_is_to_know(finished, student):
    assert sorted(p.name for p in student.iterdir()) == ["model.json", "model.safetensors"]
    fields = json.loads((student / "model.json").read_text())
    content = (student / "model.safetensors").read_bytes()
    assert fields["sha256"] == hashlib.sha256(content).hexdigest()
    assert fields["num_steps"] == 2
    assert fields["image_shape"] == [8, 8, 1]
    assert fields["num_classes"] == 10
    assert fields["model"]["num_groups"] == 8
    assert fields["diffusion"]["parameterization"] == "v"
    assert_same_bits(safetensors.numpy.load(content), params(finished[0], "student_0002"))


def test_a_student_takes_its_own_steps_and_a_teacher_any(finished, student, tmp_path):
    with pytest.raises(UserError, match="out is made for 2 steps; num_steps is 4"):
        load(student, 4)
    teacher = exported(finished[0], "teacher", tmp_path / "teacher")
    assert [load(teacher, n).num_steps for n in (None, 3)] == [4, 3]
    np.testing.assert_array_equal(load(teacher, 3)(1, 5), load(finished[0], 3, "teacher")(1, 5))


def test_an_export_is_a_teacher(finished, student, tmp_path):
    setup = copied(distilled_from(student), tmp_path / "run")
    assert setup.given_teacher.fixed_steps == 2
    assert_same_bits(params(tmp_path / "run", "teacher"), params(finished[0], "student_0002"))


def rounded(weights):
    """Weights as float32 that bfloat16 holds."""
    return {n: np.float32(np.asarray(w, jnp.bfloat16)) for n, w in weights.items()}


def test_bfloat16_is_half_the_file_and_each_weight_rounded(finished, student, tmp_path):
    out = exported(finished[0], "student_0002", tmp_path / "out", "bfloat16")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (out, student)]
    header = int.from_bytes((out / "model.safetensors").read_bytes()[:8], "little") + 8
    assert (sizes[0] - header) * 2 == pytest.approx(sizes[1] - header, abs=1000)
    dtypes = [json.loads((f / "model.json").read_text())["weights_dtype"] for f in (out, student)]
    assert dtypes == ["bfloat16", "float32"]
    read = flatten(jax.device_get(load(out)._params))
    assert {w.dtype.name for w in read.values()} == {"float32"}
    assert_same_bits(read, rounded(params(finished[0], "student_0002")))


def test_a_chain_starts_from_bfloat16(finished, tmp_path):
    out = exported(finished[0], "student_0002", tmp_path / "out", "bfloat16")
    copied(distilled_from(out), tmp_path / "run")
    expected = rounded(params(finished[0], "student_0002"))
    assert_same_bits(params(tmp_path / "run", "teacher"), expected)


def test_a_dtype_that_is_none_is_refused_before_anything_is_written(finished, tmp_path):
    with pytest.raises(UserError, match="dtype is 'int8'; it must be one of float32, bfloat16"):
        exported(finished[0], "student_0002", tmp_path / "out", "int8")
    assert not (tmp_path / "out").exists()


def test_weights_of_an_unknown_kind_are_refused(copy):
    content = safetensors.numpy.save({"conv_in/kernel": np.zeros(3, np.int8)})
    (copy / "model.safetensors").write_bytes(content)
    fields = json.loads((copy / "model.json").read_text())
    fields["sha256"] = hashlib.sha256(content).hexdigest()
    (copy / "model.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="conv_in/kernel is I8; it must be one of F32, BF16"):
        load(copy)


def test_damage_is_refused_by_name(copy):
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    for content in (bytes(flipped), whole[:-1], b""):
        weights.write_bytes(content)
        with pytest.raises(UserError, match="model.safetensors is damaged, or of another export"):
            load(copy)
    weights.unlink()
    with pytest.raises(UserError, match="there is no .*/model.safetensors"):
        load(copy)
    weights.write_bytes(whole)
    assert load(copy).num_steps == 2
    (copy / "model.json").unlink()
    with pytest.raises(UserError, match="there is no .*/model.json"):
        load(copy)


def test_the_weights_of_another_export_are_refused(finished, copy, tmp_path):
    other = exported(finished[0], "student_0001", tmp_path / "other")
    shutil.copy(other / "model.safetensors", copy)
    with pytest.raises(UserError, match="or of another export: its SHA-256"):
        load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version is 2, not 1"),
        ({"num_steps": 0}, "num_steps has 0; it must be an integer of at least 1"),
        ({"num_steps": "2"}, "num_steps has '2'"),
        ({"image_shape": [8, 8]}, "model.json cannot be used"),
        ({"image_shape": 8}, "model.json cannot be used"),
        ({"model": {}}, "are not of the network that config.model describes"),
        ({"model": None}, "config.model is None"),
        ({"diffusion": []}, "config.diffusion is .*; it must have the fields"),
        ({"sampler": "ddim"}, "model.json cannot be used"),
        ({"num_classes": 7}, r"class_emb/kernel: ours \[7, 16\], theirs \[10, 16\]"),
        ({"image_shape": [8, 8, 3]}, r"conv_in/kernel: ours \[3, 3, 3, 8\], theirs"),
    ],
)
def test_a_description_that_is_wrong_is_refused(copy, change, message):
    path = copy / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load(copy)


def test_images_that_do_not_halve_for_each_resolution_are_refused(copy):
    path = copy / "model.json"
    description = json.loads(path.read_text()) | {"image_shape": [7, 8, 1]}
    description["model"] |= {"channel_multipliers": [1, 1]}
    path.write_text(json.dumps(description))
    with pytest.raises(UserError, match="7x8 pixels do not halve"):
        load(copy)


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"format_version": 1}'])
def test_a_description_that_is_none_is_refused(copy, content):
    (copy / "model.json").write_text(content)
    with pytest.raises(UserError, match="model.json"):
        load(copy)


def test_nothing_of_the_users_is_written_over(finished, student, tmp_path):
    with pytest.raises(UserError, match="run has other files, .* for one; name a new folder"):
        exported(finished[0], "teacher", shutil.copytree(finished[0], tmp_path / "run"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file is a file; name a folder"):
        exported(finished[0], "teacher", tmp_path / "file")
    again = shutil.copytree(student, tmp_path / "again")
    (again / ".DS_Store").write_text("a system's")
    exported(finished[0], "student_0001", again)
    assert load(again).num_steps == 1
