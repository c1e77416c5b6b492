"""The server's page in a real browser: what it shows is what the server says, and an input can be tried."""

from __future__ import annotations

import base64
import io
import os
import shutil

import numpy as np
import pytest
from bundles import SYMBOLS, make_profile, write_image_bundle, write_text_bundle
from PIL import Image
from serving_process import Server

from anytime_lct.runtime import preprocess
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.serving.metrics import OUTCOMES

selenium = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not ((CHROMIUM and DRIVER) or os.environ.get("CI")), reason="needs Debian's chromium and chromium-driver"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    profile = make_profile()
    exits = tuple(each.model_copy(update={"temperature": 2.0 * each.index}) for each in profile.exits)
    write_image_bundle(folder / "tiny", size=8, profile=profile.model_copy(update={"exits": exits}))
    write_text_bundle(folder / "words")
    write_image_bundle(folder / "numbers", size=2, kind="array")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with Server(folder) as server:
        yield server


@pytest.fixture(scope="module")
def browser(server):
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    browser.set_window_size(1000, 1200)
    yield browser
    browser.quit()


@pytest.fixture
def page(browser, server):
    browser.get(f"{server.address}/")
    Page(browser).wait(lambda page: page.text("state") == "serving")
    return Page(browser)


class Page:
    """Things on the page by their ids."""

    def __init__(self, browser):
        self.browser = browser

    def find(self, name):
        return self.browser.find_element("id", name)

    def text(self, name):
        return self.find(name).text

    def wait(self, true):
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 30, poll_frequency=0.05).until(lambda _: true(self))

    def choose(self, model):
        from selenium.webdriver.support.ui import Select

        Select(self.find("model")).select_by_visible_text(model)
        shown = {"tiny": "image", "words": "text", "numbers": "array"}[model]
        self.wait(lambda page: page.find(shown).is_displayed())

    def ask(self, press, words="exit "):
        self.browser.execute_script("document.getElementById('answer').textContent = ''")
        press()
        self.wait(lambda page: words in page.text("answer"))
        return self.text("answer")

    def budget(self, place):
        change = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        return self.ask(lambda: self.browser.execute_script(change, self.find("budget"), place))

    def errors(self):
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_every_exit_is_shown_with_its_cost_and_quality(page):
    page.choose("tiny")
    rows = [row.text.split()[:4] for row in page.find("exits").find_elements("tag name", "tr")]
    assert rows == [["1", "35", "35", "80.0%"], ["2", "100", "100", "90.0%"], ["3", "150", "150", "95.0%"]]
    assert page.errors() == []


def test_a_picture_is_answered_as_predict_does_by_the_exit_that_the_budget_chooses(page, folder, tmp_path):
    page.choose("tiny")
    path, turned = tmp_path / "picture.png", Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 44, 4), np.uint8)).save(path, exif=turned)
    output = page.ask(lambda: page.find("file").send_keys(str(path)))
    assert "exit 3, because" in output
    session = AnytimeSession(folder / "tiny")
    x = preprocess.read_input(path, session.manifest)
    for place in (1, 2, 3):
        output = page.budget(place)
        assert f"exit {place}, because" in output
        odds = session.run_to(place, x).probabilities[0]
        rows = [f"{session.manifest.classes[k]} {100 * odds[k]:.1f}%" for k in np.argsort(-odds)]
        assert output.replace("\n", " ").startswith(" ".join(rows))
        assert int(page.text("server-us").split()[0]) > 0
    assert page.find("exits").find_element("class name", "chosen").text.startswith("3")
    assert page.errors() == []


def test_what_was_answered_is_counted_live(page):
    page.choose("tiny")
    before = int(page.text("answered")) if page.text("answered").isdigit() else 0
    deadline = page.find("deadline")
    deadline.send_keys("9000")
    assert "on time" in page.ask(page.find("random").click)
    page.wait(lambda page: page.text("answered").isdigit() and int(page.text("answered")) > before)
    page.wait(lambda page: page.text("on-time") == "100.0%")
    page.wait(lambda page: "%" in page.find("exits").text.splitlines()[-1].split()[-1])


def test_one_may_draw(page):
    page.choose("tiny")
    pad = page.find("pad")

    def draw():
        chain = selenium.ActionChains(page.browser, duration=20)
        chain.move_to_element(pad).click_and_hold().move_by_offset(30, 30).release().perform()

    assert "exit 3" in page.ask(draw)
    drawn = page.browser.execute_script("return arguments[0].toDataURL()", pad).partition(",")[2]
    assert np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn))).convert("L")).max() == 255
    page.find("clear").click()
    drawn = page.browser.execute_script("return arguments[0].toDataURL()", pad).partition(",")[2]
    assert np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn))).convert("L")).max() == 0


def test_numbers_are_answered_as_they_stand_there(page, folder):
    page.choose("numbers")
    assert (
        page.text("shape") == "4 numbers, 1 x 2 x 2" and len(page.find("numbers").get_attribute("value").split()) == 4
    )
    write = "document.getElementById('numbers').value = '1, 2\\n-3 4.5'"
    page.browser.execute_script(write)
    output = page.ask(page.find("go").click)
    x = np.array([[[[1, 2], [-3, 4.5]]]], np.float32)
    odds = AnytimeSession(folder / "numbers").run_to(3, x).probabilities[0]
    assert f"{100 * odds.max():.1f}%" in output and "exit 3, because" in output
    assert "exit 3, because" in page.ask(page.find("noise").click) and page.errors() == []


def test_text_is_gone_on_from(page, folder):
    page.choose("words")
    box = page.find("words")
    box.clear()
    box.send_keys("abé")
    output = page.ask(page.find("go").click)
    session = AnytimeSession(folder / "words")
    best = int(session.run_to(3, np.array([[0, 1, 3]])).classes[0, -1])
    symbol = SYMBOLS[best].replace("\n", "\\n")
    assert output.splitlines()[1] == f'"{symbol}"' and "exit 3" in output
    box.send_keys("z")
    assert "got 'z' as character 4" in page.ask(page.find("go").click, "Expected")
    page.wait(lambda page: page.text("all").isdigit() and page.text("refused") != "0")
    counts = {name: int(page.text(name)) for name in OUTCOMES}
    assert sum(counts.values()) == int(page.text("all")) and counts["failed"] == 0
    for name, count in counts.items():
        assert page.text(f"{name}-share") == f"{100 * count / sum(counts.values()):.1f}%"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_it_fits_any_screen_and_can_be_read(page, scheme, width):
    page.choose("tiny")
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    wide, ink, ground, tops = page.browser.execute_script(
        "const style = getComputedStyle(document.body);"
        "const tops = [...document.querySelectorAll('section:not(.wide)')].map(e => e.getBoundingClientRect().top);"
        "return [document.documentElement.scrollWidth, style.color, style.backgroundColor, tops]"
    )
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide <= width and len(set(tops)) == (1 if width == 1400 else 3)
    bright = [sum(int(part) for part in colour.strip("rgb()").split(",")) for colour in (ink, ground)]
    assert (bright[0] < 150 and bright[1] > 600) if scheme == "light" else (bright[0] > 600 and bright[1] < 150)
    for kind in ("input", "select", "textarea"):
        for each in page.browser.find_elements("tag name", kind):
            assert each.accessible_name or not each.is_displayed()


def test_it_asks_for_the_key_of_the_server(browser, folder, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("the-key-of-one-client\n")
    with Server(folder, "--api-key-file", str(keys), "--root-path", "/lct") as server:
        browser.get(f"{server.address}/lct/")
        page = Page(browser)
        for key, words in (("another-key-than-that", "got another"), ("the-key-of-one-client", "")):
            page.wait(lambda page: page.find("key-form").is_displayed())
            page.browser.execute_script("document.getElementById('key').value = arguments[0]", key)
            page.find("key-form").find_element("tag name", "button").click()
            page.wait(lambda page, words=words: words in page.text("answer"))
        page.wait(lambda page: page.text("state") == "serving" and not page.find("key-form").is_displayed())
        page.choose("tiny")
        assert "exit" in page.ask(page.find("random").click)
        page.browser.execute_script("window.open = address => { window.opened = address }")
        browser.find_element("link text", "metrics").click()
        page.wait(lambda page: (page.browser.execute_script("return window.opened") or "").startswith("blob:"))
