"""The page in a real browser, and the command that writes it."""

import functools
import http.server
import subprocess
import sys
import threading

import pytest
from PIL import Image

from diffusion_distill.metrics.names import value_text
from diffusion_distill.report import page
from diffusion_distill.storage.files import read_rows
from tests.commands import ROOT, run
from tests.report.conftest import METRIC

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


def assert_right(browser, address, width, scheme, images, plots):
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
    for width in (390, 1280):
        for scheme in ("light", "dark"):
            # Six rows of samples, three blocks, four rows of neighbours; three plots.
            assert_right(browser, f"{address}/digits/report.html", width, scheme, 13, 3)
    assert set(asked) == {"/digits/report.html"}
    text = browser.find_element("tag name", "body").text
    assert "6 of 6 stages are trained and measured." in text
    assert "All 5 rounds took 1m05s, 6.50 times the teacher's 10s" in text
    for row in read_rows(digits_run / "results.jsonl"):
        assert value_text(METRIC, row[METRIC]) in text
    for name in (f"distance_{METRIC}", "training", "cost"):
        assert Image.open(digits_run / "report" / f"{name}.png").size[0] > 800


def test_two_runs_compared_one_of_them_under_way(
    digits_run, cifar10_run, browser, served, tmp_path
):
    page.write([digits_run, cifar10_run], tmp_path / "comparison.html")
    for width, scheme in ((390, "light"), (1280, "dark")):
        # 13 images and 2 plots of the one, 17 and 2 of the other; a plot for each of two metrics.
        assert_right(browser, f"{served[0]}/comparison.html", width, scheme, 30, 6)
    text = browser.find_element("tag name", "body").text
    assert "digits: students" in text
    assert "cifar10: teacher, DDIM" in text
    assert "10 of 14 stages" in text
    assert "student_0008 is at update 20,000 of 50,000" in text
    assert "student_4096: not measured: 4096 steps are more than" in text
    assert "Hollow marks are the paper's" in text
    assert "13.36" in text
    made = {p.name for p in (tmp_path / "comparison").iterdir()}
    assert made == {
        f"distance_{METRIC}.png", "distance_fid50k_train.png",
        *(f"{what}_{n}.png" for what in ("training", "cost") for n in (1, 2)),
    }  # fmt: skip


def test_a_page_that_cannot_be_drawn_is_one_warning(digits_run, monkeypatch, capsys):
    def broken(workdirs, out):
        raise MemoryError("no room\nfor it")

    monkeypatch.setattr(page, "write", broken)
    page.refresh(digits_run)
    assert capsys.readouterr().out.splitlines() == [
        f"warning: {digits_run / 'report.html'} was not made: MemoryError: no room for it"
    ]


def test_the_command_writes_the_page(digits_run):
    done = run("report", f"--workdir={digits_run}")
    assert (done.returncode, done.stdout.split()) == (0, [f"{digits_run}/report.html"]), done.stderr
    assert (digits_run / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_the_command_writes_no_other_kind_of_file(digits_run, tmp_path):
    refused = run("report", f"--workdir={digits_run}", f"--out={tmp_path}/report.pdf")
    assert refused.returncode == 2
    assert refused.stderr == f"error: --out={tmp_path}/report.pdf must end in .html\n"


def test_a_run_starts_without_loading_what_draws():
    script = "import sys, diffusion_distill.main; print(*sys.modules)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    loaded = set(done.stdout.split())
    assert "diffusion_distill.report.page" in loaded
    assert not {"matplotlib", "jinja2"} & loaded
