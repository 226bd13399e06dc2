"""Take the screenshot of the README: ``python -m tests.run.desk.screenshot FILE.webp BANK OTHER_BANK``."""

import sys
import tempfile
import threading
import time
from io import BytesIO
from pathlib import Path

import uvicorn
from PIL import Image

from src.run.desk.app import Start, application
from src.run.desk.serve import bound
from tests.browser import chromium
from tests.run.desk.desks import ThreadWorker


def main(target: str, *banks: str) -> None:
    """Draw two concepts with the world, one of them at three strengths, and save what the page shows."""
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        start = Start(Path(scratch), [], {Path(bank).stem: bank for bank in banks}, "world_sd", cache_dir=scratch)
        app, desk = application(start, ThreadWorker)
        listening, port = bound("127.0.0.1", 17860)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
        while not (desk.queue and desk.queue.facts):
            time.sleep(0.1)
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
        page.set_default_timeout(300_000)
        page.goto(f"http://127.0.0.1:{port}/")
        page.locator("#seed-count").fill("5")
        page.locator("#axis-key").select_option(f"strength of <{Path(banks[-1]).stem}>")
        page.locator("#axis-values").fill("0,1")
        page.locator("#axis-values").press("Enter")
        done = "document.querySelectorAll('.cell:not(.busy) img[src^=\"/api/pictures\"]').length"
        while page.evaluate(done) < 10:
            page.wait_for_timeout(200)
        page.locator("h1").click()
        page.wait_for_timeout(500)
        Image.open(BytesIO(page.screenshot())).convert("RGB").save(target, quality=82, method=6)
        server.should_exit = True
        time.sleep(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
