"""The report in a real browser: headless Chromium, as `make browser` installs it.

Skipped without a browser, except when CI is set.
"""
import os
import pathlib
import shutil
from collections.abc import Iterator

import pytest
import small_classes_run
import small_run
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.ui import WebDriverWait

from pipeline.paths import Run
from pipeline.report import compare, report

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
WIDTHS_PX = (400, 1600)
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER) and not os.environ.get("CI"),
    reason="there is no chromium with chromedriver here; `make browser` installs them",
)


@pytest.fixture(scope="module")
def pages(demo_folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The address of each page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("runs"))
        one, two = small_run.make("one", demo_folder, 0.4), small_run.make("two", demo_folder, 0.8)
        small_run.submit(one, demo_folder)
        report.main(one, [], [])
        compare.main(Run("one+two"), [one, two], [])
        paths = {"report": one.report_page, "compare": Run("one+two").compare_page}
        several, worse = small_classes_run.make("several", 1), small_classes_run.make("worse", 3)
        discs = small_classes_run.make("discs", 1, binary=True)
        for run in (several, discs):
            report.main(run, [], [])
        compare.main(Run("several+worse"), [several, worse], [])
        paths |= {"classes": several.report_page, "folder": discs.report_page}
        paths |= {"compare of classes": Run("several+worse").compare_page}
        return {name: path.resolve().as_uri() for name, path in paths.items()}


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    assert CHROMIUM and DRIVER, "CI is set, so there must be a browser: run `make browser` first"
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield browser
    finally:
        browser.quit()


def open_page(
    browser: webdriver.Chrome, address: str, width_px: int = 1600, scheme: str = "light", script: bool = True
) -> None:
    size = {"width": width_px, "height": 900, "deviceScaleFactor": 1, "mobile": width_px < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
    browser.get("about:blank")  # so that a reloaded page is not mistaken for the one still open
    browser.get(address)
    WebDriverWait(browser, 30).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, "footer + script"))
    WebDriverWait(browser, 30).until(lambda driver: driver.execute_script("return document.readyState") == "complete")


def visible_cards(browser: webdriver.Chrome, section: str = "gallery") -> list[dict[str, str]]:
    """Return the data attributes of the visible cards, in the order of the page."""
    return browser.execute_script(
        "return [...document.querySelectorAll(`#${arguments[0]} .card`)].filter(c => c.offsetParent)"
        ".map(c => ({...c.dataset}))", section
    )  # fmt: skip


def choose(browser: webdriver.Chrome, what: str, value: str) -> None:
    Select(browser.find_element(By.CSS_SELECTOR, f"#gallery select[{what}]")).select_by_value(value)


@pytest.mark.parametrize("name", ["report", "compare", "classes", "folder", "compare of classes"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width_px", WIDTHS_PX)
def test_a_page_fits_its_window_and_reports_no_error(
    chromium: webdriver.Chrome, pages: dict[str, str], name: str, width_px: int, scheme: str
) -> None:
    chromium.get_log("browser")  # messages of earlier pages
    open_page(chromium, pages[name], width_px, scheme)
    assert chromium.execute_script("return document.documentElement.scrollWidth") == width_px
    wide = "return [...document.querySelectorAll('main *, header *')].filter(e => !e.closest('.scroll') && " \
        "!e.closest('svg') && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    assert chromium.execute_script(wide) == []
    assert chromium.get_log("browser") == []


def test_every_image_loads_and_has_an_alternative_text(chromium: webdriver.Chrome, pages: dict[str, str]) -> None:
    open_page(chromium, pages["report"])
    broken = """const all = [...document.images]; all.forEach(i => i.loading = "eager");
        await Promise.all(all.map(i => i.decode().catch(() => {})));
        return [all.length, all.filter(i => !i.naturalWidth).length, all.filter(i => !i.alt.trim()).length]"""
    count, without_pixels, without_text = chromium.execute_script(broken)
    assert count > 64 * 2 and (without_pixels, without_text) == (0, 0)


def test_the_charts_have_text_and_a_description(chromium: webdriver.Chrome, pages: dict[str, str]) -> None:
    open_page(chromium, pages["report"], 400)
    charts = chromium.find_elements(By.CSS_SELECTOR, "svg.chart")
    assert len(charts) >= 11
    for chart in charts:
        assert chart.size["width"] > 150 and chart.size["height"] > 60
        assert chart.get_attribute("aria-label") and chart.find_elements(By.CSS_SELECTOR, "text")
    ids = chromium.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_the_filters_filter_and_sort_sorts(chromium: webdriver.Chrome, pages: dict[str, str]) -> None:
    open_page(chromium, pages["report"])
    everything = visible_cards(chromium)
    make = everything[0]["group"]
    choose(chromium, "data-filter=group", make)
    choose(chromium, "data-filter=angle", "3")
    filtered = visible_cards(chromium)
    assert 0 < len(filtered) < len(everything)
    assert {(card["group"], card["angle"]) for card in filtered} == {(make, "3")}
    assert chromium.find_element(By.CSS_SELECTOR, "#gallery output").text == f"{len(filtered)} of {len(everything)}"
    choose(chromium, "data-filter=group", "")
    choose(chromium, "data-filter=angle", "")
    choose(chromium, "data-sort", "score down")
    dice = [float(card["score"]) for card in visible_cards(chromium)]
    assert len(dice) == len(everything) and dice == sorted(dice, reverse=True) and dice[0] > dice[-1]
    choose(chromium, "data-filter=tag", "median")
    assert all("median" in card["tag"].split("|") for card in visible_cards(chromium))


def test_the_page_of_classes_has_its_charts_and_filters(chromium: webdriver.Chrome, pages: dict[str, str]) -> None:
    open_page(chromium, pages["classes"], 400)
    matrix = chromium.find_element(By.CSS_SELECTOR, ".matrix svg")
    letters = matrix.find_elements(By.CSS_SELECTOR, "text")
    assert {"ground", "disc", "square", "sky", "predicted as"} <= {letter.text for letter in letters}
    assert min(letter.size["height"] for letter in letters if letter.text.isdigit()) >= 9
    assert len(chromium.find_elements(By.CSS_SELECTOR, "svg.chart")) >= 6
    rows = chromium.find_elements(By.CSS_SELECTOR, ".classes tbody tr")
    assert [row.text.split()[0] for row in rows] == ["ground", "disc", "square", "sky"]
    assert chromium.execute_script("return arguments[0].cells[1].textContent", rows[3]) == "–"
    everything = visible_cards(chromium)
    assert len(everything) == 12
    choose(chromium, "data-filter=group", "group 2")
    filtered = visible_cards(chromium)
    assert len(filtered) == 3 and {card["group"] for card in filtered} == {"group 2"}
    choose(chromium, "data-filter=group", "")
    choose(chromium, "data-filter=fold", "1")
    assert {card["fold"] for card in visible_cards(chromium)} == {"1"}
    choose(chromium, "data-sort", "score up")
    scores = [float(card["score"]) for card in visible_cards(chromium)]
    assert scores == sorted(scores) and scores[0] < scores[-1]


def test_one_layer_lies_over_the_images(chromium: webdriver.Chrome, pages: dict[str, str]) -> None:
    open_page(chromium, pages["report"])
    for layer in ("truth", "prediction", "errors", "image"):
        chromium.execute_script("document.getElementById(arguments[0]).click()", f"layer-{layer}")
        seen = chromium.execute_script(
            "return [...new Set([...document.querySelectorAll('#gallery .layer')]"
            ".filter(e => Number(getComputedStyle(e).opacity) > 0).map(e => e.classList[1]))]"
        )
        assert seen == ([] if layer == "image" else [layer])


def test_a_click_enlarges_until_a_pixel_can_be_seen(chromium: webdriver.Chrome, pages: dict[str, str]) -> None:
    open_page(chromium, pages["report"])
    card = chromium.find_element(By.CSS_SELECTOR, "#gallery .card")
    name = card.get_attribute("data-name")
    chromium.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", card)
    card.find_element(By.CSS_SELECTOR, ".crop").click()
    assert chromium.find_element(By.CSS_SELECTOR, "dialog h3").text == name
    crop = chromium.find_element(By.CSS_SELECTOR, "dialog .crop img")
    assert crop.size["width"] >= 2.5 * int(crop.get_attribute("naturalWidth"))
    assert crop.value_of_css_property("image-rendering") == "pixelated"
    chromium.find_element(By.CSS_SELECTOR, "dialog button").click()
    assert not chromium.find_element(By.TAG_NAME, "dialog").is_displayed()


def test_the_dark_page_is_dark_and_its_charts_with_it(chromium: webdriver.Chrome, pages: dict[str, str]) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        open_page(chromium, pages["report"], scheme=scheme)
        colours[scheme] = chromium.execute_script(
            "const of = (e, key) => getComputedStyle(e)[key]; return [of(document.body, 'backgroundColor'), "
            "of(document.body, 'color'), of(document.querySelector('svg.chart text'), 'fill')]"
        )
    (light_background, *light_inks), (dark_background, *dark_inks) = colours["light"], colours["dark"]
    assert brightness(light_background) > 200 > 60 > brightness(dark_background)
    assert max(map(brightness, light_inks)) < 120 and min(map(brightness, dark_inks)) > 140


def brightness(colour: str) -> float:
    """Mean of the channels of `rgb(1, 2, 3)`."""
    channels = colour[colour.index("(") + 1 : -1].split(",")[:3]
    return sum(map(float, channels)) / 3


def test_without_javascript_all_cards_are_shown_unfiltered(chromium: webdriver.Chrome, pages: dict[str, str]) -> None:
    open_page(chromium, pages["report"], script=False)
    cards = chromium.find_elements(By.CSS_SELECTOR, "#gallery .card")
    assert len(cards) == 64 and cards[0].is_displayed()
    assert not chromium.find_element(By.CSS_SELECTOR, "#gallery select").is_displayed()
    assert chromium.find_element(By.CSS_SELECTOR, "#gallery .layers").is_displayed()


def test_a_page_requests_nothing_from_the_network(chromium: webdriver.Chrome, pages: dict[str, str]) -> None:
    chromium.get_log("performance")
    open_page(chromium, pages["report"])
    requested = chromium.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [address for address in requested if not address.startswith("data:")] == []
