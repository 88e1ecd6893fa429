"""What the page says of its runs, and of files that are missing or damaged."""

import json
import re

import pytest

from diffusion_distill.errors import UserError
from diffusion_distill.report import sections
from diffusion_distill.report.render import render
from diffusion_distill.report.run import read_run
from diffusion_distill.storage.files import read_rows, write_rows
from tests.report.conftest import METRIC, write_run


def test_a_run_in_the_middle_of_its_teacher(tmp_path):
    page, plots, problems = render([write_run(tmp_path / "run", measured=0, logged=480)])
    assert (set(plots), page.count("<img "), problems) == ({"training.png", "cost.png"}, 0, [])
    assert "0 of 6 stages are trained and measured; teacher is at update 480 of 1,200." in page
    assert "No stage is measured yet." in page


def test_runs_compared_share_a_plot_and_show_where_their_configs_differ(tmp_path):
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "other", measured=4)]
    fields = json.loads((runs[1] / "config.json").read_text())
    fields["config"]["train"]["batch_size"] = 64
    (runs[1] / "config.json").write_text(json.dumps(fields))
    page, plots, _ = render(runs)
    assert "2 runs compared" in page
    for line in ("one: students", "one: teacher, DDIM", "other: students", "other: teacher, DDIM"):
        assert f'<th scope="col">{line}</th>' in page
    two_each = {f"{what}_{n}.png" for n in (1, 2) for what in ("training", "cost")}
    assert set(plots) == {f"distance_{METRIC}.png", *two_each}
    assert re.findall(r'<th scope="row">(\w+) <span class="badge">', page) == ["batch_size"]


def test_another_metric_is_not_drawn_beside_the_papers(cifar10_run):
    rows = (cifar10_run / "results.jsonl").read_text().replace("fid50k_train", "fid10k_train")
    (cifar10_run / "results.jsonl").write_text(rows)
    run = read_run(cifar10_run)
    made = sections.distance_plot("fid10k_train", [("", run)], "distance")
    assert "fid10k_train is another quantity, so that the paper" in made["notes"][0]
    assert "13.36" not in str(made["numbers"]) + made["plot"].alt + made["plot"].svg


def test_nothing_in_a_file_becomes_markup(tmp_path):
    run = write_run(tmp_path / "<b>x<i>", measured=1)
    evil = "</script><script>alert(1)</script><img src=http://example.org>"
    fields = json.loads((run / "config.json").read_text())
    fields["config"]["data"]["tfds_name"] = fields["config"]["data"]["name"] = evil
    fields["config"][evil] = {evil: evil}
    (run / "config.json").write_text(json.dumps(fields))
    rows = read_rows(run / "results.jsonl")
    rows[0] |= {"metric": evil, "metrics": [evil], evil: 1.0, "code_version": evil}
    write_rows(run / "results.jsonl", rows)
    html, plots, _ = render([run])
    assert "alert(1)" in html
    assert "<script" not in html
    assert "<img src=http" not in html
    assert "<b>" not in html
    assert all("/" not in name for name in plots)


def test_what_is_missing_or_damaged_costs_its_part_and_is_named(digits_run):
    (digits_run / "real.npz").unlink()
    (digits_run / "teacher/samples.npz").write_bytes(b"PK not a zip")
    (digits_run / "student_0016/metrics.jsonl").write_text('{"step": 1}\nnot JSON\n{"step": 3}\n')
    (digits_run / "student_0008/metrics.jsonl").unlink()
    rows = read_rows(digits_run / "results.jsonl")
    rows[0].pop("baselines")
    rows[2].pop("seconds")
    write_rows(digits_run / "results.jsonl", rows)
    html, plots, problems = render([digits_run])
    for part in (
        "there is no real.npz",
        "teacher/samples.npz cannot be read",
        "student_0016/metrics.jsonl is damaged in line 2",
        "results.jsonl is damaged: 1 of its 6 rows lack one of stage, num_steps",
        "the table of results could not be made of what is in the files: KeyError",
    ):
        assert any(part in problem for problem in problems), part
    assert html.count("<li>") == len(problems)
    assert set(plots) == {f"distance_{METRIC}.png", "training.png", "cost.png"}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"config": 3, "image_shape": "x"}'])
def test_a_damaged_config_costs_the_settings(digits_run, content):
    (digits_run / "config.json").write_text(content)
    run = read_run(digits_run)
    assert (run.config, run.image_shape, len(run.results)) == ({}, None, 6)


def test_a_page_of_a_damaged_config_has_the_rest(digits_run):
    (digits_run / "config.json").write_text("{")
    page, plots, problems = render([digits_run])
    assert "student_0016" in page
    assert len(plots) == 3
    assert any("config.json is damaged" in problem for problem in problems)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no workdir"):
        render([tmp_path / "none"])
    with pytest.raises(UserError, match="is not the workdir of a run"):
        render([tmp_path])
