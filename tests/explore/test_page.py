"""The page: in a real browser pick, click, see the picture change; mistakes are answered in it."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from diffusion_distill.explore.world import BATCH

pytest.importorskip("gradio", reason="gradio, of the extra explore, is not installed")

from diffusion_distill.explore import page


@pytest.fixture(scope="module")
def opened(browser, address):
    """The page, once its first pictures are there; it must not have complained in the end."""
    browser.get_log("browser")  # what other pages said
    browser.get(address)
    wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#drawn img"))
    yield browser
    assert browser.get_log("browser") == []


def wait(browser, condition):
    return WebDriverWait(browser, 60, poll_frequency=0.05).until(lambda _: condition())


def images(browser, inside):
    """The images that are shown there, from their own bytes: uint8 [N, H, W]."""
    sources = browser.execute_script(
        "return [...document.querySelectorAll(arguments[0] + ' img')].map(i => i.src)", inside
    )
    data = [base64.b64decode(source.split("base64,")[1]) for source in sources]
    return np.array([np.asarray(Image.open(io.BytesIO(png))) for png in data])


def text(browser, inside):
    return browser.execute_script(
        "return document.querySelector(arguments[0])?.textContent ?? ''", inside
    )


def fill(browser, **fields):
    for elem_id, value in fields.items():
        box = browser.find_element(By.CSS_SELECTOR, f"#{elem_id} textarea, #{elem_id} input")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(value or Keys.BACKSPACE)


def choose(browser, stage):
    browser.find_element(By.CSS_SELECTOR, "#stage input").click()

    def wanted():  # an option has no text as long as the list is not drawn
        options = browser.find_elements(By.CSS_SELECTOR, "[role=option]")
        return [option for option in options if option.text.strip("✓ \n").startswith(stage)]

    wait(browser, wanted)[0].click()


def open_tab(browser, name):
    tabs = browser.find_elements(By.CSS_SELECTOR, "button[role=tab]")
    next(tab for tab in tabs if tab.text == name).click()


def click(browser, elem_id):
    button = wait(browser, lambda: browser.find_elements(By.ID, elem_id))[0]
    wait(browser, button.is_displayed)
    button.click()


def test_pick_click_and_see_the_picture_change(opened, world, address):
    assert opened.title == "Explore tiny"
    first = images(opened, "#drawn")
    expected = [*world.samples("student_0001", 1, 0, None, 16)][-1].images
    np.testing.assert_array_equal(first, expected[..., 0])
    for stage, made_for, steps in (("student_0002", "2", "2"), ("teacher", "4", "3")):
        choose(opened, stage)
        box = opened.find_element(By.CSS_SELECTOR, "#steps input, #steps textarea")
        wait(opened, lambda box=box, n=made_for: box.get_property("value") == n)
        fill(opened, steps=steps, seed="5", label="3", images="9")
        click(opened, "draw")
        said = f"9 images by {stage} in {steps} steps: "
        wait(opened, lambda said=said: text(opened, "#drawn .said").startswith(said))
        expected = [*world.samples(stage, int(steps), 5, 3, 9)][-1].images[..., 0]
        np.testing.assert_array_equal(images(opened, "#drawn"), expected)
        assert np.abs(expected - first[:9].astype(int)).max() > 20
    style = "return getComputedStyle(document.querySelector('#drawn img')).imageRendering"
    assert opened.execute_script(style) == "pixelated"
    fill(opened, seed="${7*7}{{8}}<b>x</b>")
    click(opened, "draw")
    said = "seed is '${7*7}{{8}}<b>x</b>'; it must be"
    wait(opened, lambda: said in text(opened, "#drawn [role=alert]"))
    fill(opened, seed="0")

    script = "return performance.getEntriesByType('resource').map(e => e.name)"
    requested = [url for url in opened.execute_script(script) if not url.startswith("data:")]
    assert len(requested) > 10
    assert [url for url in requested if not url.startswith(address)] == []


def test_side_by_side_and_walk(opened, world):
    choose(opened, "student_0001")
    fill(opened, seed="0", label="", steps="1")
    open_tab(opened, "Side by side")
    click(opened, "compare")
    wait(opened, lambda: len(images(opened, "#compared")) == 6 * BATCH)
    parts = [images(opened, f".columns > :nth-child({n})") for n in (1, 2, 3, 4)]
    for shown, column in zip(parts, list(world.compare(0, None))[-1], strict=True):
        pictures = [p.images[..., 0] for p in (column.student, column.teacher) if p]
        np.testing.assert_array_equal(shown, np.concatenate(pictures))
    assert text(opened, ".columns > :nth-child(4) .absent") == "no student of 8 steps in this run"
    for width in (1280, 390):
        opened.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        wait(opened, lambda width=width: opened.execute_script("return innerWidth") == width)
        assert opened.execute_script("return document.documentElement.scrollWidth") == width
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    open_tab(opened, "Walk")
    click(opened, "walk")
    wait(opened, lambda: "16 images by student_0001" in text(opened, "#walked .said"))
    expected = world.walk("student_0001", 1, (0, 1), None).images[..., 0]
    np.testing.assert_array_equal(images(opened, "#walked"), expected)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"seed": "-1"}, "seed is &#x27;-1&#x27;; it must be a whole number from 0 to 2147483647"),
        ({"seed": "<b>x</b>"}, "seed is &#x27;&lt;b&gt;x&lt;/b&gt;&#x27;; it must be"),
        ({"label": "10"}, "label is &#x27;10&#x27;; it must be a whole number from 0 to 9"),
        ({"steps": "2"}, "steps is 2; for student_0001 it must be 1, which it is made for"),
        ({"w": "much"}, "guidance is &#x27;much&#x27;; it must be a number"),
        ({"w": "2"}, "guidance is 2.0; this network has none"),
        ({"count": "65"}, "images is &#x27;65&#x27;; it must be a whole number from 1 to 64"),
        ({"stage": "no such"}, "no stage named no such"),
    ],
)
def test_what_is_wrong_is_answered_in_the_page(world, asked, message):
    fields = {"stage": "student_0001", "steps": "1", "seed": "0", "label": "", "w": ""}
    fields["count"] = "16"
    *_, answer = page.Handlers(world).samples(*(fields | asked).values())
    assert answer.startswith('<p class="said refused" role="alert">')
    assert message in answer
