"""A real browser opens the page from disk, wide and narrow, in light and dark: all is there, nothing is cut off."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from src.eval.grid import Grid
from src.eval.results.report import Report
from tests.browser import SCHEMES, WIDTHS, chromium, cut_off, looking

LONG = "/".join(["a", "folder", "whose", "name", "does", "not", "end"] * 8)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that a report may hold, wider than any window."""
    noise = Image.effect_noise((64, 64), 60)
    report = Report(f"Two arms of {LONG}")
    report.add_grid(Grid([noise] * 18, 9, [f"a <rex> on the grass, {at}" for at in range(18)]), "Pictures")
    report.add_image(Image.effect_noise((1600, 120), 60), "a wide picture")
    report.add_text(f"a <b>bold</b> prompt & more of {LONG}", "Text")
    scores = [f"score_{at}" for at in range(14)]
    report.add_table(["", *scores], [[arm, *["0.512 [0.498, 0.533]"] * 14] for arm in ("full", "a long arm " * 6)], "T")
    report.add_plots({"means": Image.effect_noise((1800, 300), 60), "loss": noise, "dino": noise}, {"loss": LONG})
    with report.folded("More"):
        report.add_image(Image.effect_noise((320, 240), 60), "more noise")
    report.add_config({"path": LONG * 3})
    path = tmp_path_factory.mktemp("page") / "report.html"
    report.write(path)
    return path


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_off_and_nothing_complains(browser: object, written: Path, width: int, scheme: str) -> None:
    with looking(browser, written.as_uri(), width, scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert cut_off(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert all(page.evaluate("[...document.images].map(image => image.naturalWidth)"))
        scrolling = "[...document.querySelectorAll('.scroll')].map(one => one.scrollWidth > one.clientWidth)"
        assert page.evaluate(scrolling)[:2] == [True, True] if width == 400 else True
        sizes = page.evaluate(
            "[...document.querySelectorAll('figcaption, td, th')].map(e => getComputedStyle(e).fontSize)"
        )
        assert min(float(size.removesuffix("px")) for size in sizes) >= 13
        left = page.evaluate("document.documentElement.scrollHeight - document.querySelector('main').lastElementChild"
                             ".getBoundingClientRect().bottom - scrollY")  # fmt: skip
        assert left < 80, "no blank space at the end"


def test_text_is_text(browser: object, written: Path) -> None:
    with looking(browser, written.as_uri()) as page:
        assert "a <b>bold</b> prompt & more" in page.inner_text("main") and page.locator("b").count() == 0


def test_what_is_broken_would_be_seen(browser: object, tmp_path: Path) -> None:
    (tmp_path / "broken.html").write_text(
        '<body><p style="width: 2000px">wide</p><img src="http://example.invalid/x.png"><script>missing()</script>',
        encoding="utf-8",
    )
    url = (tmp_path / "broken.html").as_uri()
    with pytest.raises(AssertionError, match=r"example\.invalid.*missing is not"), looking(browser, url) as page:
        assert "wide" in cut_off(page)[0]
