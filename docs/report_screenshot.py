"""Make docs/report.png for the README, after `make demo` and `make report CONFIG=configs/demo.yaml`.

It needs the Chromium of `make browser`, and stacks three sections of the page: `python docs/report_screenshot.py`.
"""
import base64
import pathlib
import shutil

import cv2
import numpy as np
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "runs/demo/report/index.html"
WIDTH_PX = 1400
# Colour scheme, selector of the element at the top, offset below it, height in pixels.
SECTIONS = (("light", "body", 0, 852), ("dark", ".panel.two", -66, 852), ("light", "#gallery", 0, 816))


def main() -> None:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(option)
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        screenshots = [screenshot(browser, *section) for section in SECTIONS]
    finally:
        browser.quit()
    path = ROOT / "docs/report.png"
    image = cv2.resize(np.vstack(screenshots), None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(path), image)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB")


def screenshot(browser: webdriver.Chrome, scheme: str, selector: str, offset_px: int, height_px: int) -> np.ndarray:
    """Return what the window shows when the element is at its top, BGR uint8 (rows, columns, 3)."""
    size = {"width": WIDTH_PX, "height": height_px, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get(PAGE.as_uri())
    browser.execute_script(
        "document.documentElement.style.scrollBehavior = 'auto'; window.scrollTo(0, scrollY + arguments[1] + "
        "document.querySelector(arguments[0]).getBoundingClientRect().top)", selector, offset_px,
    )  # fmt: skip
    data = base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


if __name__ == "__main__":
    main()
