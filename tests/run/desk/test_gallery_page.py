"""A real browser in the gallery: runs to filter, steps on a scrubber, two series side by side, a vote by keyboard."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from src.eval.votes import read_votes
from tests.browser import SCHEMES, WIDTHS, chromium, cut_off, looking
from tests.run.desk.test_gallery import EVIL, application_of, template

__all__ = ["template"]


@pytest.fixture(scope="module")
def votes(template: Path) -> Path:
    return template / "desk" / "votes.csv"


@pytest.fixture(scope="module")
def address(template: Path) -> Iterator[str]:
    """A desk on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(application_of(template), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/gallery.html"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with chromium() as started:
        yield started


@pytest.mark.parametrize(("width", "scheme"), zip(WIDTHS, SCHEMES, strict=True))
def test_every_view_fits_in_its_window(browser: object, address: str, width: int, scheme: str) -> None:
    with looking(browser, address, width, scheme) as page:
        page.wait_for_selector(".card")
        assert page.locator(".card").count() == 4 and cut_off(page) == []
        assert EVIL in page.inner_text("#cards") and page.locator("#cards img[src=x]").count() == 0
        page.fill("#search", "strength sweep")
        assert page.locator(".card").count() == 1
        page.click(".card")
        page.wait_for_selector("#cells img")
        assert cut_off(page) == []
        page.click("#hold-a")
        page.click("#choose button:last-child")
        page.wait_for_selector("#choose button:last-child[aria-pressed=true]")
        page.click("#hold-b")
        page.wait_for_selector(".pair img")
        assert page.locator(".pair").count() == 6 and cut_off(page) == []
        assert page.inner_text("#sure") == "dino -0.150"
        page.click("#numbers summary")
        assert page.inner_text("#differences tbody tr:nth-child(2)").split() == [
            "dino",
            "-0.150",
            "[-0.150,",
            "-0.150]",
        ]
        assert EVIL in page.inner_text("#pairs") and page.locator("#pairs p img").count() == 0
        page.click(".pair button")
        page.locator("#wipe").fill("20")
        assert (
            page.evaluate("getComputedStyle(document.getElementById('large-second')).clipPath")
            == "inset(0px 0px 0px 20%)"
        )
        assert cut_off(page) == []
        page.keyboard.press("Escape")


def test_steps_change_under_the_scrubber(browser: object, address: str) -> None:
    with looking(browser, address) as page:
        page.click(".card:has-text('concept_rex')")
        page.wait_for_selector("#cells img")
        assert page.inner_text("#choose output") == "step 20" and EVIL in page.text_content("#run-settings")
        last = page.locator("#cells img").first.get_attribute("src")
        page.focus("#choose input")
        page.keyboard.press("Home")
        page.locator(f"#cells figure:first-child img:not([src='{last}'])").wait_for()
        assert page.inner_text("#choose output") == "step 0"


def test_a_vote_by_keyboard_becomes_a_line_of_the_table(browser: object, address: str, votes: Path) -> None:
    with looking(browser, address) as page:
        page.click(".card:has-text('2026-01-03')")
        page.wait_for_selector("#cells img")
        page.click("#hold-a")
        page.click("#choose button:has-text('control')")
        page.click("#hold-b")
        page.wait_for_selector(".pair img")
        page.click("[data-view=vote]")
        page.keyboard.type("anna")
        page.keyboard.press("Enter")
        for number, key in enumerate(("ArrowLeft", "ArrowDown", "ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowLeft")):
            page.locator("#left", has_text=f"{6 - number} of 6 left.").wait_for()
            assert "concept" not in page.inner_text("#trial").lower()
            page.keyboard.press(key)
        page.wait_for_selector("#preferences td")
        cells = page.locator("#preferences td").all_inner_texts()
        assert "share preferred" in page.inner_text("#preferences thead") and cells[2] == "looks better"
        assert (
            sum(map(int, cells[3:6])) == 6
            and cells[4] == "1"
            and cells[7] in ("undecided", "preferred", "not preferred")
        )
    given = read_votes(votes)
    assert len(given) == 6 and {vote.rater for vote in given} == {"anna"}
    assert {vote.seed for vote in given} == {"0", "1"} and len({vote.case for vote in given}) == 3
