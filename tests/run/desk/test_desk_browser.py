"""A stranger at the desk, in a real browser: nothing but what the page shows tells what to press."""

import base64
import shlex
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from src.run.desk.app import Start, application
from src.run.desk.serve import bound
from tests.browser import SCHEMES, WIDTHS, chromium, cut_off, looking
from tests.run.desk.desks import ThreadWorker, place

DROP = """([data, name]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], name, { type: "image/png" }));
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: carried, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("desk")
    base, bank = place(folder)
    other = Path(bank).with_name("mittens.safetensors")
    other.write_bytes(Path(bank).read_bytes())
    start = Start(folder / "outputs", base, {"rex": bank}, "world_sd", cache_dir=str(folder / ".cache"))
    app, behind = application(start, ThreadWorker)
    listening, port = bound("127.0.0.1", 17860)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not (behind.queue and behind.queue.facts):
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/", folder / "outputs" / "desk" / "pictures"
    server.should_exit = True
    thread.join(10)


def until(page: Any, script: str, seconds: float = 60) -> None:
    """Wait for something to be true; the page's own policy forbids Playwright's way."""
    end = time.monotonic() + seconds
    while not page.evaluate(script):
        assert time.monotonic() < end, f"{script}: {page.locator('body').inner_text()[:800]}"
        page.wait_for_timeout(50)


def drawn(page: Any, number: int) -> None:
    done = "[...document.querySelectorAll('.cell')].filter((cell) => !cell.classList.contains('busy')"
    until(page, f"{done} && cell.querySelector('img[src^=\"/api/pictures\"]')).length === {number}")
    until(page, "!document.querySelector('.cell.busy, .cell.draft')")


def sources(page: Any) -> list[str]:
    return page.evaluate("[...document.querySelectorAll('.cell img')].map((image) => image.getAttribute('src'))")


def test_a_strangers_session(browser: Any, desk: tuple[str, Path]) -> None:
    address, pictures = desk
    with looking(browser, address) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address.rstrip("/"))
        drawn(page, 4)
        assert page.locator("#prompt").input_value() == "a <rex> on the grass"
        first = sources(page)

        page.get_by_role("button", name="Add a concept").click()
        page.locator(".bank", has_text="mittens").click()
        assert page.locator("#prompt").input_value() == "a <rex> on the grass and a <mittens>"
        drawn(page, 4)
        assert not set(first) & set(sources(page))

        fader = page.get_by_label("Strength of mittens")
        fader.fill("0.4")
        drawn(page, 4)
        page.get_by_role("button", name="Mute rex").click()
        drawn(page, 4)
        page.locator(".cell .copy").first.click()
        command = page.evaluate("navigator.clipboard.readText()")
        assert shlex.split(command)[:2] == ["python", "generate.py"]
        assert "prompt='a <rex:0> on the grass and a <mittens:0.4>'" in shlex.split(command)
        muted = sources(page)

        page.locator("#axis-key").select_option("strength of <mittens>")
        page.locator("#axis-values").fill("0,1")
        page.locator("#axis-values").press("Enter")
        drawn(page, 8)
        assert page.locator(".row-label .value").all_inner_texts() == ["0", "1"]

        page.locator("#seed-count").fill("5")
        page.locator("#seed-count").press("Enter")
        drawn(page, 10)
        assert page.locator(".seed").all_inner_texts() == [f"seed {number}" for _ in range(2) for number in range(5)]
        page.locator("#seed-count").fill("1")
        page.locator("#seed-count").press("Enter")
        drawn(page, 2)
        page.locator(".picture").first.click()
        page.locator("#viewer-other").select_option(index=1)
        assert page.locator(".pane").count() == 2 and page.locator("#wipe").is_visible()
        page.get_by_role("button", name="Side by side").click()
        page.locator("#viewer-stage").focus()
        page.keyboard.press("+")
        transforms = page.evaluate("[...document.querySelectorAll('.inner')].map((one) => one.style.transform)")
        assert transforms[0] == transforms[1] and "1.25" in transforms[0]
        page.locator(".chip", has_text="rex").focus()
        until(page, "!document.querySelector('.pane.a .heat').hidden")
        page.keyboard.press("Escape")

        name = muted[0].rpartition("/")[2]
        data = base64.b64encode((pictures / name).read_bytes()).decode()
        page.evaluate(DROP, [data, name])
        drawn(page, 1)
        assert sources(page) == muted[:1]
        assert page.get_by_label("Strength of mittens").input_value() == "0.4"
        page.locator("#undo").click()
        drawn(page, 2)
        before = (sources(page), page.locator("#prompt").input_value())
        page.wait_for_timeout(600)
        own = page.url
    # The page's address names it, whoever opens it and whenever.
    with looking(browser, own) as page:
        drawn(page, 2)
        assert (sources(page), page.locator("#prompt").input_value()) == before


def test_what_is_wrong_is_said_under_the_prompt_and_put_right_there(browser: Any, desk: tuple[str, Path]) -> None:
    with looking(browser, f"{desk[0]}#bbbbbbbb") as page:
        page.locator("#prompt").fill("a <tom> & <b>bold</b> <img src=x onerror=alert(1)>")
        page.locator("#prompt").press("Enter")
        until(page, "!document.querySelector('#trouble').hidden")
        assert "names <tom>" in page.locator("#trouble").inner_text()
        page.locator("#prompt").fill("a dog")
        page.locator("#prompt").press("Enter")
        until(page, "document.querySelector('#trouble').hidden")
        assert page.locator("#prompt").get_attribute("aria-invalid") == "false"


def test_the_keyboard_alone(browser: Any, desk: tuple[str, Path]) -> None:
    with looking(browser, f"{desk[0]}#cccccccc") as page:
        until(page, "document.querySelectorAll('.cell').length > 0")
        page.keyboard.press("/")
        page.keyboard.press("Control+a")
        page.keyboard.type("a <rex> at night")
        page.keyboard.press("Enter")
        until(page, "!document.querySelector('.cell.busy, .cell.draft')")
        reached = []
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.id")
            )
        assert any(name.startswith("Seed ") for name in reached)
        assert {"seed-count", "Strength of rex", "Mute rex", "add", "learn"} <= set(reached)
        page.get_by_label("Strength of rex").focus()
        value = float(page.get_by_label("Strength of rex").input_value())
        page.keyboard.press("ArrowDown")
        assert float(page.get_by_label("Strength of rex").input_value()) == pytest.approx(value - 0.01)
        page.locator(".picture").first.focus()
        until(page, "!document.querySelector('.cell.busy')")
        page.keyboard.press("Enter")
        assert page.locator("#viewer").is_visible()
        page.keyboard.press("Escape")
        assert not page.locator("#viewer").is_visible()


@pytest.mark.parametrize(("width", "scheme"), zip(WIDTHS, SCHEMES, strict=True))
def test_nothing_is_cut_off(browser: Any, desk: tuple[str, Path], width: int, scheme: str) -> None:
    with looking(browser, f"{desk[0]}#dddddddd", width, scheme) as page:
        until(page, "document.querySelectorAll('.cell img[src]').length > 0")
        assert cut_off(page) == []
        for opens in ("Add a concept", "Learn a new one"):
            page.get_by_role("button", name=opens).click()
            assert cut_off(page) == []
            page.keyboard.press("Escape")
