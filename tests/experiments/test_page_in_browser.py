"""The page of a recorded training in a real browser: seen, heard and used by keyboard."""

from __future__ import annotations

import shutil

import pytest

import minires as mr
from minires.experiments import record_training
from minires.experiments.graph import write_page
from minires.training import Run, recipes

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMEDRIVER = shutil.which("chromedriver")
if CHROMIUM is None or CHROMEDRIVER is None:
    pytest.skip(
        "needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)",
        allow_module_level=True,
    )

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--window-size=1400,1000")  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """(path of a page, its recording): a small net, two epochs."""
    train_set, test_set = mr.data.digits("train").take(64), mr.data.digits("test").take(32)
    recipe = recipes.choose(train_set, "digits", "resnet20").replace(epochs=2)
    run = Run.new("resnet8", train_set, test_set, recipe)
    recording = record_training(run, images=8)
    path = tmp_path_factory.mktemp("page") / "out.html"
    write_page(path, run.trained, recording, run.history)
    return path, recording


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, recorded):
    """The page as it is when it is opened."""
    browser.get(recorded[0].as_uri())
    yield browser
    assert browser.get_log("browser") == []


def blocks(page):
    return page.find_elements(By.CSS_SELECTOR, ".block")


def focused(page):
    element = page.switch_to.active_element
    return element.get_attribute("id") or element.get_attribute("class")


def share(recording, epoch, block):
    return f"{round(100 * recording.moments[epoch].numbers['share'][block])} %"


def test_it_opens_on_the_last_epoch_and_loads_nothing_else(page, recorded):
    _, recording = recorded
    assert page.find_element(By.ID, "title").text == "How the gradient divides in resnet8"
    assert page.find_element(By.ID, "now").text.startswith("2: training error ")
    assert len(blocks(page)) == 3
    for index, block in enumerate(blocks(page)):
        assert block.find_element(By.CSS_SELECTOR, "text.s").text == share(recording, 2, index)
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_the_slider_goes_through_the_epochs_by_keyboard(page, recorded):
    _, recording = recorded
    slider = page.find_element(By.ID, "epoch")
    for key, epoch in ((Keys.ARROW_LEFT, 1), (Keys.HOME, 0), (Keys.ARROW_RIGHT, 1), (Keys.END, 2)):
        slider.send_keys(key)
        assert page.find_element(By.ID, "now").text.startswith(f"{epoch}: ")
        assert slider.get_attribute("aria-valuetext").startswith(f"{epoch}: ")
        shown = [b.find_element(By.CSS_SELECTOR, "text.s").text for b in blocks(page)]
        assert shown == [share(recording, epoch, i) for i in range(3)]
        heard = [b.get_attribute("aria-label") for b in blocks(page)]
        for index, text in enumerate(heard):
            assert text.startswith(f"layer{index + 1}.0: {share(recording, epoch, index)} of the")


def test_tab_and_arrows_go_from_block_to_block(page, recorded):
    _, recording = recorded
    body = page.find_element(By.TAG_NAME, "body")
    order = []
    for _ in range(6):
        (body if not order else page.switch_to.active_element).send_keys(Keys.TAB)
        order.append(focused(page))
    assert order == ["skip", "play", "epoch", "block", "block", "block"]
    assert page.find_element(By.ID, "block").text == "layer3.0"
    page.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    assert page.find_element(By.ID, "block").text == "layer2.0"
    assert [b.get_attribute("aria-pressed") for b in blocks(page)] == ["false", "true", "false"]
    numbers = page.find_element(By.ID, "numbers").text
    assert share(recording, 2, 1) in numbers
    assert f"{recording.moments[2].numbers['cosine'][1]:.2f}".replace("-", "−") in numbers
    assert "zeros for the added channels" in page.find_element(By.ID, "kind").text
    page.switch_to.active_element.send_keys(Keys.HOME)
    assert page.find_element(By.ID, "block").text == "layer1.0"
    outline = page.switch_to.active_element.value_of_css_property("outline-style")
    width = page.switch_to.active_element.value_of_css_property("outline-width")
    assert (outline, width) == ("solid", "3px")


def test_numbers_are_shown_on_demand(page):
    assert page.find_elements(By.CSS_SELECTOR, "#table tr") == []
    summary = page.find_element(By.TAG_NAME, "summary")
    summary.send_keys(Keys.ENTER)
    WebDriverWait(page, 5).until(
        lambda page: len(page.find_elements(By.CSS_SELECTOR, "#table tbody tr")) == 3
    )
    page.find_element(By.ID, "epoch").send_keys(Keys.HOME)
    assert page.find_element(By.CSS_SELECTOR, "#table caption").text.startswith("0: before")


def test_play_goes_to_the_last_epoch_and_stops(page):
    page.find_element(By.ID, "play").send_keys(Keys.SPACE)
    assert page.find_element(By.ID, "now").text.startswith("0: ")
    WebDriverWait(page, 10).until(
        lambda page: page.find_element(By.ID, "play").get_attribute("aria-label") == "Play"
    )
    assert page.find_element(By.ID, "now").text.startswith("2: ")


def luminance(colour):
    red, green, blue = (int(c) for c in colour.strip("rgba()").split(",")[:3])
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
              for c in (red / 255, green / 255, blue / 255)]  # fmt: skip
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(page, scheme):
    """Contrast of at least 4.5 to 1 (WCAG 2.1, level AA) for all text on its ground."""
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    ground = page.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    assert (luminance(ground) < 0.1) == (scheme == "dark")
    panel = page.find_element(By.ID, "panel").value_of_css_property("background-color")
    for selector, behind in (("h1", ground), ("#facts", ground), (".note", ground),
                             ("#now", ground), ("#numbers dt", panel), ("#numbers .s", panel),
                             ("#numbers .b", panel), ("figcaption", panel)):  # fmt: skip
        colour = page.find_element(By.CSS_SELECTOR, selector).value_of_css_property("color")
        low, high = sorted((luminance(colour), luminance(behind)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector


def test_nothing_sticks_out_of_a_narrow_window(page):
    page.set_window_size(500, 900)
    try:
        wide = page.execute_script("return document.documentElement.scrollWidth")
        assert wide <= page.execute_script("return document.documentElement.clientWidth")
    finally:
        page.set_window_size(1400, 1000)
