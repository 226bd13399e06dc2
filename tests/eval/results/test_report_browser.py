"""A real browser opens the page from disk: every picture is there, nothing is fetched, nothing complains."""

import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from src.eval.results.report import Report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MEASURE = "document.title = [...document.images].map(image => image.naturalWidth)"
WIDTHS = f"<script>addEventListener('load', () => {{{MEASURE}}})</script>"


pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")


def opened(page: Path, *arguments: str) -> subprocess.CompletedProcess:
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", "--no-first-run"]
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    command = [BROWSER, *offline, *quiet, f"--user-data-dir={page.parent}/profile", "--virtual-time-budget=5000"]
    return subprocess.run(
        [*command, *arguments, page.as_uri()], capture_output=True, text=True, timeout=120, encoding="utf-8"
    )


@pytest.fixture
def page(tmp_path: Path) -> Path:
    report = Report("Two arms")
    report.add_text("a <b>bold</b> prompt & more", "Text")
    report.add_table(["", "dino"], [["full", "0.5"]], "Table")
    report.add_image(Image.effect_noise((320, 240), 60), "noise")
    with report.folded("More"):
        report.add_image(Image.effect_noise((320, 240), 60), "more noise")
    report.add_config({"seed": 0})
    report.write(tmp_path / "report.html")
    return tmp_path / "report.html"


def test_the_page_opens_whole_and_alone(page: Path) -> None:
    watched = page.with_name("watched.html")
    watched.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{WIDTHS}</body>"), encoding="utf-8")
    ended = opened(watched, "--dump-dom")
    assert ended.returncode == 0, ended.stderr
    title = ended.stdout.partition("<title>")[2].partition("</title>")[0]
    widths = [int(width) for width in title.split(",")]
    assert len(widths) == 2 and widths[0] == 320 and widths[1] > 0
    assert "CONSOLE" not in ended.stderr and "ERR_" not in ended.stderr
    assert "a &lt;b&gt;bold&lt;/b&gt; prompt &amp; more" in ended.stdout


def test_a_missing_picture_would_be_seen(page: Path) -> None:
    broken = page.with_name("broken.html")
    broken.write_text(f'<img src="http://example.org/x.png">{WIDTHS}', encoding="utf-8")
    assert "<title>0</title>" in opened(broken, "--dump-dom").stdout
