"""The page, looked at in a real browser, and what it says of files that are missing or damaged."""

import functools
import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from diffusion_distill.errors import UserError
from diffusion_distill.metrics.names import value_text
from diffusion_distill.report import page
from diffusion_distill.storage.files import read_rows, write_rows
from tests.report.conftest import METRIC, write_run

ROOT = Path(__file__).parents[2]

# What a person would see go wrong, and the numbers of the plot that the page has.
_LOOK = """
const images = [...document.images];
const plots = [...document.querySelectorAll('[role=img]')];
return {
  sideways: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  images: images.length,
  broken: images.filter(i => !i.complete || !i.naturalWidth || !i.getAttribute('alt')).length,
  plots: plots.length,
  nameless: plots.filter(p => !p.getAttribute('aria-label')).length,
  flat: plots.filter(p => p.getBoundingClientRect().height < 100).length,
  ids: [...document.querySelectorAll('[id]')].map(e => e.id),
  loaded: performance.getEntriesByType('resource').map(e => e.name),
  paper: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.querySelector('.plot text')).fill,
};
"""


@pytest.fixture
def served(tmp_path):
    """(address of tmp_path over loopback, paths that were asked for)."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code="-", size="-"):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


def look(browser, address, width, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.get_log("browser")  # what other pages said
    browser.get(address)
    seen = browser.execute_script(_LOOK)
    seen["console"] = browser.get_log("browser")
    return seen


def brightness(colour):
    return sum(int(c) for c in colour.removeprefix("rgb(").rstrip(")").split(",")) / 3


def assert_right_everywhere(browser, address, images, plots):
    for width in (390, 1280):
        for scheme in ("light", "dark"):
            seen = look(browser, address, width, scheme)
            assert seen["console"] == []
            assert seen["loaded"] == []
            assert seen["sideways"] <= 0, (width, scheme)
            assert (seen["images"], seen["broken"]) == (images, 0)
            assert (seen["plots"], seen["nameless"], seen["flat"]) == (plots, 0, 0)
            assert len(seen["ids"]) == len(set(seen["ids"]))
            contrast = brightness(seen["ink"]) - brightness(seen["paper"])
            assert contrast > 150 if scheme == "dark" else contrast < -150


def test_a_finished_run_is_right_at_any_width_in_light_and_dark(digits_run, browser, served):
    assert page.write([digits_run], digits_run / "report.html") == []
    address, asked = served
    # Six rows of samples, three blocks, four rows of neighbours; three plots.
    assert_right_everywhere(browser, f"{address}/digits/report.html", images=13, plots=3)
    assert set(asked) == {"/digits/report.html"}
    text = browser.find_element("tag name", "body").text
    assert "6 of 6 stages are trained and measured." in text
    assert "All 5 rounds took 1m05s, 6.50 times the teacher's 10s" in text
    for row in read_rows(digits_run / "results.jsonl"):
        assert value_text(METRIC, row[METRIC]) in text
    for name in (f"distance_{METRIC}", "training", "cost"):
        assert Image.open(digits_run / "report" / f"{name}.png").size[0] > 800


def test_a_run_of_the_papers_benchmark_that_is_under_way(cifar10_run, browser, served):
    page.write([cifar10_run], cifar10_run / "report.html")
    assert_right_everywhere(browser, f"{served[0]}/cifar10/report.html", images=17, plots=3)
    text = browser.find_element("tag name", "body").text
    assert "10 of 14 stages" in text
    assert "student_0008 is at update 20,000 of 50,000" in text
    assert "student_4096: not measured: 4096 steps are more than" in text
    assert "Hollow marks are the paper's" in text
    assert "13.36" in text


def test_a_run_in_the_middle_of_its_teacher(tmp_path, browser, served):
    run = write_run(tmp_path / "run", measured=0, logged=480)
    assert page.write([run], run / "report.html") == []
    seen = look(browser, f"{served[0]}/run/report.html", 390, "light")
    assert (seen["console"], seen["images"], seen["plots"], seen["sideways"]) == ([], 0, 2, 0)
    text = browser.find_element("tag name", "body").text
    assert "0 of 6 stages are trained and measured; teacher is at update 480 of 1,200." in text
    assert "No stage is measured yet." in text


def test_two_runs_compared(digits_run, tmp_path, browser, served):
    other = write_run(tmp_path / "other", measured=4)
    fields = json.loads((other / "config.json").read_text())
    fields["config"]["train"]["batch_size"] = 64
    (other / "config.json").write_text(json.dumps(fields))
    page.write([digits_run, other], tmp_path / "comparison.html")
    assert_right_everywhere(browser, f"{served[0]}/comparison.html", images=24, plots=5)
    text = browser.find_element("tag name", "body").text
    assert "digits: students" in text
    assert "other: teacher, DDIM" in text
    differing = browser.find_elements("xpath", "//tr[.//span[@class='badge']]")
    assert [row.text.split()[0] for row in differing] == ["batch_size"]
    made = {p.name for p in (tmp_path / "comparison").iterdir()}
    assert made == {f"distance_{METRIC}.png", *(f"{what}_{n}.png" for what in ("training", "cost")
                                                for n in (1, 2))}  # fmt: skip


def test_another_metric_is_not_drawn_beside_the_papers(cifar10_run):
    rows = (cifar10_run / "results.jsonl").read_text().replace("fid50k_train", "fid10k_train")
    (cifar10_run / "results.jsonl").write_text(rows)
    html, _, _ = page.render([cifar10_run])
    assert "fid10k_train is another quantity, so that the paper" in html
    assert "13.36" not in html


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
    html, plots, _ = page.render([run])
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
    html, plots, problems = page.render([digits_run])
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
    html, _, _ = page.render([digits_run])
    assert "student_0016" in html


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no workdir"):
        page.render([tmp_path / "none"])
    with pytest.raises(UserError, match="is not the workdir of a run"):
        page.render([tmp_path])


def test_a_page_that_cannot_be_drawn_is_one_warning(digits_run, monkeypatch, capsys):
    def broken(workdirs, out):
        raise MemoryError("no room\nfor it")

    monkeypatch.setattr(page, "write", broken)
    page.refresh(digits_run)
    assert capsys.readouterr().out.splitlines() == [
        f"warning: {digits_run / 'report.html'} was not made: MemoryError: no room for it"
    ]


def test_the_command_writes_the_page(digits_run, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "diffusion_distill.report", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    done = run(f"--workdir={digits_run}")
    assert (done.returncode, done.stdout.split()) == (0, [f"{digits_run}/report.html"]), done.stderr
    assert (digits_run / "report.html").stat().st_size > 10_000
    refused = run(f"--workdir={digits_run}", f"--out={tmp_path}/report.pdf")
    assert refused.returncode == 2
    assert refused.stderr == f"error: --out={tmp_path}/report.pdf must end in .html\n"


def test_a_run_starts_without_loading_what_draws():
    command = [sys.executable, "-X", "importtime", "-m", "diffusion_distill.main", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "diffusion_distill.report.page" in done.stderr
    assert not {"matplotlib", "jinja2"} & set(done.stderr.split())
