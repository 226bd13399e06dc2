"""A real browser looks at a page: nothing is fetched from elsewhere, nothing complains, nothing is cut off."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS, SCHEMES = (1280, 400), ("light", "dark")

CUT = """() => [...document.querySelectorAll('body *')].filter(element => {
  const box = element.getBoundingClientRect();
  if (!box.width || (box.right <= innerWidth + 1 && box.left >= -1)) return false;
  for (let above = element.parentElement; above; above = above.parentElement) {
    const edges = above.getBoundingClientRect();
    if (['auto', 'scroll'].includes(getComputedStyle(above).overflowX) && edges.right <= innerWidth + 1) return false;
  }
  return true;
}).map(element => element.outerHTML.slice(0, 80))"""
"""Elements that reach beyond the window and do not scroll inside of something that fits."""


@contextmanager
def chromium() -> Iterator[object]:
    """A browser without a network of its own; skips the test where there is none."""
    library = pytest.importorskip("playwright.sync_api", reason='pip install -e ".[test]"')
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with library.sync_playwright() as started:
        # A browser that root starts needs the first, a small /dev/shm the second.
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield browser
        browser.close()


@contextmanager
def looking(browser: object, url: str, width: int = 1280, scheme: str = "light") -> Iterator[object]:
    """Open a page, and fail at the end if it complained or asked another host for anything."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    # A busy machine takes its time.
    page.set_default_timeout(120_000)
    seen: list[str] = []
    home = urlsplit(url).netloc
    page.on("console", lambda message: seen.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("request", lambda request: seen.append(request.url) if urlsplit(request.url).netloc != home else None)
    page.on("requestfailed", lambda request: seen.append(f"failed: {request.url}"))
    page.goto(url)
    yield page
    assert not seen, seen
    page.close()


def cut_off(page: object) -> list[str]:
    """What reaches beyond the window and cannot be scrolled to in its own place."""
    return page.evaluate(CUT)
