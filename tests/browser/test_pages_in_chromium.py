# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages of a history as people use them, in Debian's Chromium: filter, sort, links, keyboard, dark mode, 400 px.

They are opened from their folder, without a server. Where Chromium is not installed these tests are skipped, unless
``POSTLOAD_TEST_BROWSER`` wants them: ``apt-get install chromium chromium-driver``.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from made_site import NEW, STILL, make_history, make_site, signature
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from harness.report.pages import device_page, run_page, signature_page

PAGES = (
    "index.html",
    "signatures.html",
    "runs.html",
    "speeds.html",
    device_page("ahci"),
    signature_page(signature(NEW)),
    run_page("night-4"),
)
_WANTED = os.environ.get("POSTLOAD_TEST_BROWSER")
_LACKS = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(
    bool(_LACKS) and not _WANTED, reason=f"no {' and no '.join(_LACKS)} here: apt-get install chromium chromium-driver"
)


class Browser:
    """Pages of a site in one Chromium, which loads nothing but files."""

    def __init__(self, site: Path, *, script: bool = True) -> None:
        self.site = site
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or "chromium"
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        if not script:
            options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver") or "chromedriver"))
        self.look(1400)

    def look(self, width: int, scheme: str = "light") -> None:
        """From now on in a window of so many pixels, light or dark."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, name: str) -> None:
        self.driver.get((self.site / name).as_uri())

    def all(self, query: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, query)

    def one(self, query: str) -> WebElement:
        (found,) = self.all(query)
        return found

    def rows(self, table: str) -> list[str]:
        """The first words of the rows that can be seen."""
        return [row.text.split()[0] for row in self.all(f"#{table} tbody tr") if row.is_displayed()]

    def press(self, *keys: str) -> WebElement:
        """What has the focus after some keys."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)
        return self.driver.switch_to.active_element

    def complaints(self) -> Sequence[str]:
        """What the browser said of the pages: an error of the script, something that it did not load."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def colour(self, query: str, name: str) -> tuple[int, ...]:
        value = self.all(query)[0].value_of_css_property(name)
        return tuple(map(int, re.findall(r"\d+", value)[:3]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    make_history(str(folder / "history.db"), folder)
    make_site(str(folder / "history.db"), folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def started_browser(site: Path) -> Iterator[Browser]:
    browser = Browser(site)
    yield browser
    browser.driver.quit()


@pytest.fixture
def browser(started_browser: Browser) -> Iterator[Browser]:
    """On the start page, at 1400 px; whatever the test did, no page may have been complained of."""
    started_browser.look(1400)
    started_browser.open("index.html")
    yield started_browser
    assert started_browser.complaints() == []


def test_a_filter_leaves_what_is_asked_for(browser: Browser) -> None:
    every = browser.rows("devices-table")
    assert {"ahci", "e1000", "platform"} < set(every)
    browser.one(".controls [name=bad]").click()
    broken = browser.rows("devices-table")
    assert set(broken) < set(every)
    assert "e1000" not in broken
    browser.one(".controls [name=find]").send_keys("AHC")
    assert browser.rows("devices-table") == ["ahci"]
    assert browser.one(".controls output").text == f"1 of {len(every)}"
    browser.one(".controls [name=find]").clear()
    browser.one(".controls [name=bad]").click()
    browser.one(".controls [name=find]").send_keys(Keys.SPACE)
    assert browser.rows("devices-table") == every


def test_what_is_chosen_filters_too(browser: Browser) -> None:
    browser.open(device_page("ahci"))
    lanes = Select(browser.one("select[name=lane]"))
    lanes.select_by_visible_text("back-to-back")
    assert [row.text.split()[3] for row in browser.all("#cells-table tbody tr") if row.is_displayed()] == [
        "back-to-back"
    ]
    lanes.select_by_visible_text("all")
    assert len(browser.rows("cells-table")) == 4


def test_a_click_on_a_head_sorts_and_another_one_turns_it(browser: Browser) -> None:
    browser.open("runs.html")
    assert browser.rows("runs-table")[0] == "night-4"
    head = browser.all("#runs-table thead th")[0]
    head.find_element(By.TAG_NAME, "button").click()
    assert browser.rows("runs-table") == [f"night-{night}" for night in range(5)]
    assert head.get_attribute("aria-sort") == "ascending"
    head.find_element(By.TAG_NAME, "button").click()
    assert browser.rows("runs-table") == [f"night-{night}" for night in reversed(range(5))]
    assert head.get_attribute("aria-sort") == "descending"


def test_numbers_are_sorted_as_numbers(browser: Browser) -> None:
    browser.open("speeds.html")
    now = next(head for head in browser.all("#speeds-table thead th") if head.text == "now")
    now.find_element(By.TAG_NAME, "button").click()
    assert browser.rows("speeds-table") == ["e1000", "ahci"]  # 904 and 1,504


def test_links_lead_from_the_morning_to_the_finding_its_device_and_its_run(browser: Browser) -> None:
    browser.one("#new a.mono").click()
    assert browser.one("h1").text == signature(NEW)
    browser.driver.find_element(By.LINK_TEXT, "ahci").click()
    assert browser.one("h1").text == "ahci"
    browser.driver.find_element(By.LINK_TEXT, "Runs").click()
    browser.driver.find_element(By.LINK_TEXT, "night-4").click()
    assert browser.one("h1").text == "night-4"
    browser.driver.find_element(By.LINK_TEXT, "Nights").click()
    assert browser.one("h1").text == "What the last night says"


def test_all_of_it_works_by_keyboard(browser: Browser) -> None:
    assert browser.press(Keys.TAB).text == "Skip to the content"
    assert browser.press(Keys.TAB).text == "Nights"
    find = browser.press("/")
    assert find.get_attribute("name") == "find"
    browser.press("nvme")
    assert browser.rows("devices-table") == ["nvme"]
    browser.press("/")  # in the field it is a letter
    assert find.get_attribute("value") == "nvme/"
    browser.press(Keys.BACKSPACE)
    head = browser.press(Keys.TAB, Keys.TAB)
    assert (head.tag_name, head.text) == ("button", "device")
    browser.press(Keys.ENTER)
    assert browser.all("#devices-table th[aria-sort=ascending]")
    link = browser.press(Keys.TAB, Keys.TAB)
    assert link.value_of_css_property("outline-style") == "solid"
    link.send_keys(Keys.ENTER)
    assert browser.one("h1").text == "nvme"


def test_what_is_folded_opens_by_keyboard(browser: Browser) -> None:
    summary = browser.one("#new summary")
    browser.driver.execute_script("arguments[0].focus()", summary)
    browser.press(Keys.ENTER)
    assert browser.one("#new .cells li").is_displayed()


@pytest.mark.parametrize("page", PAGES)
def test_dark_is_dark_and_can_be_read(browser: Browser, page: str) -> None:
    browser.open(page)
    assert min(browser.colour("body", "background-color")) > 200 > 100 > max(browser.colour("body", "color"))
    browser.look(1400, "dark")
    browser.open(page)
    assert max(browser.colour("body", "background-color")) < 60 < 180 < min(browser.colour("body", "color"))
    assert max(browser.colour("nav a:not([aria-current])", "color")) > 180


@pytest.mark.parametrize("page", PAGES)
def test_400_pixels_are_wide_enough(browser: Browser, page: str) -> None:
    browser.look(400)
    browser.open(page)
    assert browser.driver.execute_script("return document.documentElement.scrollWidth") <= 400
    assert all(nav.is_displayed() for nav in browser.all("nav a"))


def test_on_a_telephone_each_value_has_its_name_beside_it(browser: Browser) -> None:
    browser.look(400)
    browser.open("index.html")
    cell = browser.all("#devices-table tbody td[data-label]")[0]
    before = browser.driver.execute_script("return getComputedStyle(arguments[0], '::before').content", cell)
    assert before == '"7.2"'
    assert not browser.all("#devices-table thead th")[0].rect["x"] > 0


def test_without_script_everything_is_there(site: Path) -> None:
    browser = Browser(site, script=False)
    try:
        browser.open("index.html")
        assert signature(NEW) in browser.one("#new").text
        assert "ahci" in browser.rows("devices-table")
        assert not browser.one(".controls").is_displayed()
        browser.one("#new summary").click()
        assert browser.one("#new .cells li").is_displayed()
        browser.driver.find_element(By.LINK_TEXT, "Signatures").click()
        assert signature(STILL) in browser.one("#signatures-table").text
    finally:
        browser.driver.quit()
