"""What is refused before a run computes or writes anything, and what is not."""

import dataclasses
import shutil

import numpy as np
import pytest

from diffusion_distill.data import sources
from diffusion_distill.data.source import from_arrays
from diffusion_distill.errors import UserError
from diffusion_distill.run import check, run_config
from tests.conftest import tiny_config


def test_two_processes_do_not_share_a_workdir(workdir):
    setup = check(tiny_config(), workdir)
    with setup.workdir.lock(), pytest.raises(UserError, match="in use by another process"):
        run_config(tiny_config(), workdir)


def test_another_config_is_refused_with_what_differs(finished):
    config = tiny_config()
    config.train.batch_size = 8
    config.model.emb_channels = 32
    with pytest.raises(UserError) as error:
        check(config, finished[0])
    differing = "config.model.emb_channels: 16 -> 32; config.train.batch_size: 16 -> 8"
    assert f"of another config: {differing}." in str(error.value)


def test_how_to_run_may_differ_between_two_starts(workdir):
    config = tiny_config()
    config.runtime.sampler_batch_size = 10
    run_config(config, workdir)


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="no config.json: it is not the workdir of a run"):
        check(tiny_config(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_network_that_does_not_fit_the_data_is_refused_before_anything_is_written(tmp_path):
    config = tiny_config()
    config.model.channel_multipliers = (1, 1, 1, 1, 1)
    with pytest.raises(UserError, match="8x8 pixels do not halve 4 times"):
        check(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_labels_are_refused_where_the_data_has_none(tmp_path, monkeypatch):
    plain = dataclasses.replace(sources.digits(), num_classes=0)
    monkeypatch.setitem(sources.SOURCES, "digits", lambda config: plain)
    with pytest.raises(UserError, match="class_conditional is True, but digits has no labels"):
        check(tiny_config(), tmp_path / "run")


@pytest.mark.parametrize("channels", [2, 4])
def test_images_that_no_picture_can_show_are_refused(tmp_path, monkeypatch, channels):
    images = np.repeat(sources.digits().images(), channels, -1)
    source = from_arrays(images, sources.digits().labels, name="digits")
    monkeypatch.setitem(sources.SOURCES, "digits", lambda config: source)
    with pytest.raises(UserError, match=f"digits has images of {channels} channels; they must"):
        check(tiny_config(), tmp_path / "run")


def test_a_full_disk_is_foreseen(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 1000))
    with pytest.raises(UserError, match="has 0 MB free; the checkpoints of teacher need"):
        run_config(tiny_config(), tmp_path / "run")
