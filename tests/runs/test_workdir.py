"""What a workdir says of its run: whether a start is one of the same run, on the same data."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from diffusion_distill.data import sources
from diffusion_distill.errors import UserError
from diffusion_distill.run import check
from diffusion_distill.runs.workdir import Workdir
from diffusion_distill.storage.files import write_rows
from tests.conftest import tiny_config

DIGITS = sources.digits()


def npz_config(path, **fields):
    config = tiny_config()
    config.data.name, config.data.path = "npz", str(path)
    config.eval.update(fields)
    return config


def write_digits(path, count=200, first=0):
    chosen = slice(first, first + count)
    np.savez(path, images=DIGITS.images()[chosen], labels=DIGITS.labels[chosen])
    return path


def write_statistics(path, level=0.0):
    path.parent.mkdir(exist_ok=True)
    np.savez(path, mu=np.full(64, level), sigma=np.eye(64))
    return str(path)


def test_a_run_goes_on_with_the_data_that_it_began_with(tmp_path):
    data, run = write_digits(tmp_path / "a.npz"), tmp_path / "run"
    check(npz_config(data), run).workdir.begin()
    kept = json.loads((run / "config.json").read_text())["data"]
    assert kept["training"] == kept["reference"]
    assert (kept["training"]["count"], kept["training"]["split"]) == (200, "train")
    moved = shutil.copy(data, tmp_path / "b.npz")
    check(npz_config(moved), run).workdir.begin()
    write_digits(data, 210)
    with pytest.raises(UserError, match="began with other training .* count: 200 -> 210; labels:"):
        check(npz_config(data), run)
    write_digits(data, 200, first=1)
    with pytest.raises(UserError, match=r"fingerprint: [0-9a-f]{12} -> [0-9a-f]{12}\. Let config"):
        check(npz_config(data), run)
    assert json.loads((run / "config.json").read_text())["data"] == kept


def test_statistics_may_be_moved_and_must_stay_the_same(tmp_path):
    data, run = write_digits(tmp_path / "a.npz"), tmp_path / "run"
    reference = write_statistics(tmp_path / "here/stats.npz")
    check(npz_config(data, reference=reference), run).workdir.begin()
    moved = write_statistics(tmp_path / "there/stats.npz")
    check(npz_config(data, reference=moved), run).workdir.begin()
    write_statistics(tmp_path / "there/stats.npz", level=0.5)
    with pytest.raises(UserError, match="other reference .* statistics: .* Let config.eval.refer"):
        check(npz_config(data, reference=moved), run)
    renamed = write_statistics(tmp_path / "there/other.npz")  # the columns would have another name
    with pytest.raises(UserError, match="split: vs_stats -> vs_other"):
        check(npz_config(data, reference=renamed), run)
    with pytest.raises(UserError, match="config.eval.reference: '.*' -> ''"):
        check(npz_config(data), run)


def test_a_run_of_an_older_version_takes_on_what_it_finds(tmp_path):
    data, run = write_digits(tmp_path / "a.npz"), tmp_path / "run"
    older = check(npz_config(data), run).workdir
    dataclasses.replace(older, data={}).begin()
    assert Workdir.open(run).data == {}
    fields = json.loads((run / "config.json").read_text())
    del fields["data"]
    (run / "config.json").write_text(json.dumps(fields))
    reference = {"split": "train", "count": 190, "image_shape": [8, 8, 1], "fingerprint": "old"}
    write_rows(run / "results.jsonl", [{"stage": "teacher", "reference": reference}])
    with pytest.raises(UserError, match="other reference images .*: count: 190 -> 200"):
        check(npz_config(data), run)
    reference["count"] = 200
    write_rows(run / "results.jsonl", [{"stage": "teacher", "reference": reference}])
    check(npz_config(data), run).workdir.begin()
    assert Workdir.open(run).data == older.data
    dataclasses.replace(older, data={}).begin()  # where the data is not read, what is known stays
    assert Workdir.open(run).data == older.data
