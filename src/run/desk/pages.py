"""Open pages: what each has still to be told, and what each keeps over a restart."""

import asyncio
import json
import re
from collections import OrderedDict, deque
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

PAGE = re.compile(r"[a-z0-9]{8,32}")
MOST_PAGES, MOST_EVENTS, MOST_STATES = 64, 2000, 50
MOST_STATE = 2**19
"""Bytes of what a page keeps."""
FLEETING = ("step", "preview")
"""Events of which only the newest of a cell is worth telling."""


class Page:
    """Events for one open page, in order."""

    def __init__(self) -> None:
        self.events: deque[dict[str, Any]] = deque(maxlen=MOST_EVENTS)
        self.numbers = count(1)
        self.changed = asyncio.Event()

    def tell(self, event: dict[str, Any]) -> None:
        """Add an event; one that is only of the moment takes the place of its cell's last."""
        if event["kind"] in FLEETING and self.events:
            last = self.events[-1]
            if all(last.get(key) == event.get(key) for key in ("kind", "cell", "version")):
                self.events.pop()
        self.events.append({**event, "number": next(self.numbers)})
        self.changed.set()

    async def after(self, number: int, seconds: float) -> list[dict[str, Any]]:
        """Wait for events after a number, at most so many seconds."""
        found = [event for event in self.events if event["number"] > number]
        if not found and seconds:
            self.changed.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.changed.wait(), seconds)
            found = [event for event in self.events if event["number"] > number]
        return found


class Pages:
    """All pages, by the name that each gave itself; those that were not heard of for the longest time are forgotten.

    Args:
        folder: Where states are kept, one file for each page.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pages: OrderedDict[str, Page] = OrderedDict()

    def __getitem__(self, name: str) -> Page:
        """Return a page.

        Raises:
            ValueError: If it is called as no page is.
        """
        check_page(name)
        page = self._pages.setdefault(name, Page())
        self._pages.move_to_end(name)
        while len(self._pages) > MOST_PAGES:
            self._pages.popitem(last=False)
        return page

    def tell(self, name: str, event: dict[str, Any]) -> None:
        """Tell one page, if it is still known."""
        if name in self._pages:
            self._pages[name].tell(event)

    def tell_all(self, event: dict[str, Any]) -> None:
        """Tell all pages."""
        for page in self._pages.values():
            page.tell(event)

    def keep(self, name: str, state: Any) -> None:
        """Keep what a page wants to find again.

        Raises:
            ValueError: If it is no object, or too large.
        """
        # Seconds of imports, which the first page need not wait for.
        from src.data.files import write_text

        check_page(name)
        text = json.dumps(state)
        if not isinstance(state, dict) or len(text) > MOST_STATE:
            raise ValueError(f"a page keeps an object of at most {MOST_STATE // 1024} kB; clear its history")
        write_text(self.folder / f"{name}.json", text)
        for old in self._newest_first()[MOST_STATES:]:
            old.unlink(missing_ok=True)

    def kept(self, name: str) -> dict[str, Any]:
        """Return what a page kept; of a new page, what the last one did. Empty where there is nothing, or damage."""
        check_page(name)
        for path in [self.folder / f"{name}.json", *self._newest_first()]:
            with suppress(OSError, ValueError):
                found = json.loads(path.read_text(encoding="utf-8"))
                if isinstance(found, dict):
                    return found
        return {}

    def _newest_first(self) -> list[Path]:
        found = []
        for path in self.folder.glob("*.json"):
            with suppress(OSError):
                found.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(found, reverse=True)]


def check_page(name: str) -> None:
    """Refuse what is no name of a page, as it names a file.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(name, str) or not PAGE.fullmatch(name):
        raise ValueError("a page has a name of 8 to 32 small letters and digits; reload the page")
