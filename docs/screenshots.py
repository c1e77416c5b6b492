"""The pictures of docs/pictures: the page of a run, and the page of a server, as a browser shows them.

    anytime-lct quickstart && anytime-lct export quickstart/run --out bundles/digits
    python docs/screenshots.py quickstart/run bundles/digits

Needs Debian's chromium and chromium-driver, and what `pip install -e '.[test]'` brings.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver

PICTURES = Path(__file__).parent / "pictures"
COLOURS = 64  # of a palette: pages have few, and the files stay small


def browser(width: int, height: int) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver") or ""))
    driver.set_window_size(width, height)
    return driver


def shoot(driver: webdriver.Chrome, name: str) -> None:
    PICTURES.mkdir(exist_ok=True)
    picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    picture.quantize(COLOURS).save(PICTURES / name, optimize=True)
    print(f"wrote {PICTURES / name}, {(PICTURES / name).stat().st_size / 1000:.0f} kB")


def main() -> None:
    run, bundle = sys.argv[1:]
    program = [sys.executable, "-m", "anytime_lct.cli.main"]
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "exits.html"
        subprocess.run([*program, "analyze", run, "--html", str(page)], check=True, stdout=subprocess.DEVNULL)
        with browser(1100, 1500) as driver:
            driver.get(page.as_uri())
            shoot(driver, "run.png")
    command = [*program, "serve", bundle, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, browser(1000, 1250) as driver:
        assert server.stdout is not None
        driver.get(json.loads(server.stdout.readline())["address"])
        time.sleep(2)  # until the page knows its models
        driver.find_element("id", "random").click()
        time.sleep(2)  # and its numbers
        shoot(driver, "server.png")
        server.terminate()


if __name__ == "__main__":
    main()
