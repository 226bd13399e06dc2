"""What is to be drawn: one job at a time, the newest of each cell, kept while a worker dies and another starts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from src.run.desk.worker import Message, Worker

RANKS = {"draw": 0, "attention": 1, "numbers": 2}
"""Kinds of jobs, in the order in which they are done."""
MOST_WAITING = 600
MOST_DEATHS = 2
"""A job at which so many workers died is given up."""


@dataclass
class Job:
    """One thing to do for one cell of a page.

    Attributes:
        page: The page that asks.
        cell: The cell; a newer job of the same kind for it takes this one's place.
        kind: One of ``RANKS``.
        told: What the worker needs to know.
        version: The page's own number of this job, by which it tells answers apart.
        ticket: Our number of it.
        deaths: How many workers died at it.
    """

    page: str
    cell: str
    kind: str
    told: Sequence[Any]
    version: int = 0
    ticket: int = 0
    deaths: int = field(default=0, compare=False)


class Queue:
    """Jobs that wait, and the worker that does them. All of it belongs to one thread.

    Args:
        start: Starts a worker, which tells its messages to ``received``.
        tell: Is told what happens to a job: page, cell, version and what there is to say.
        tell_all: Is told what all pages should know.
    """

    def __init__(
        self,
        start: Callable[[], Worker],
        tell: Callable[[Job, dict[str, Any]], None],
        tell_all: Callable[[dict[str, Any]], None],
    ) -> None:
        self._start, self._tell, self._tell_all = start, tell, tell_all
        self._waiting: dict[tuple[str, str, str], Job] = {}
        self._numbers = count(1)
        self.running: Job | None = None
        self.facts: dict[str, Any] | None = None
        self.trouble = ""
        self.restarts = 0
        self._fresh_deaths = 0
        self.worker: Worker | None = start()

    @property
    def waiting(self) -> int:
        """Number of jobs that wait."""
        return len(self._waiting)

    def add(self, job: Job) -> None:
        """Put a job in; an older one of its cell is dropped, even if it is being done.

        Raises:
            ValueError: If too many wait.
        """
        key = (job.page, job.cell, job.kind)
        if key not in self._waiting and len(self._waiting) >= MOST_WAITING:
            raise ValueError(f"{MOST_WAITING} pictures wait already; wait for some, or draw fewer at a time")
        job.ticket = next(self._numbers)
        # In its old place: what a fader moves is not pushed behind the other cells.
        self._waiting[key] = job
        running = self.running
        if running and (running.page, running.cell, running.kind) == key and self.worker:
            self.worker.send("cancel", running.ticket)
        elif running and running.kind != "draw" and job.kind == "draw" and self.worker:
            # Pictures first; what was looked up for a picture is looked up again.
            self.worker.send("cancel", running.ticket)
            self._waiting.setdefault((running.page, running.cell, running.kind), running)
        self._next()

    def cancel(self, page: str, cells: Sequence[str] | None = None) -> None:
        """Drop what waits for some cells of a page, or for all of them, and stop what is being done for them."""
        for key in [key for key in self._waiting if key[0] == page and (cells is None or key[1] in cells)]:
            self._tell(self._waiting.pop(key), {"kind": "cancelled"})
        running = self.running
        if running and self.worker and running.page == page and (cells is None or running.cell in cells):
            self.worker.send("cancel", running.ticket)

    def received(self, worker: Worker, message: Message) -> None:
        """Take a message of a worker; what an earlier one still had to say is not heard."""
        if worker is not self.worker:
            return
        kind, *told = message
        if kind == "died":
            self._replace()
        elif kind == "ready":
            self.facts, self.trouble, self._fresh_deaths = told[1], "", 0
            self._tell_all({"kind": "ready", "facts": self.facts})
            self._next()
        elif self.facts is None and kind == "failed":
            # The model that the desk was started with cannot be loaded: said, and it waits for another start.
            self.trouble, self.facts = told[1], {}
            self._tell_all({"kind": "trouble", "sentence": self.trouble})
            self._next()
        elif self.running and told[0] == self.running.ticket:
            self._of_running(kind, told[1:])

    def _of_running(self, kind: str, told: Sequence[Any]) -> None:
        job = self.running
        assert job
        if kind == "step":
            self._tell(job, {"kind": "step", "share": told[0], "left": told[1]})
        elif kind == "preview":
            self._tell(job, {"kind": "preview", "image": told[0]})
        else:
            self.running = None
            if kind == "done":
                self._tell(job, {"kind": job.kind, **told[0]})
            elif kind == "failed":
                self._tell(job, {"kind": "failed", "of": job.kind, "sentence": told[0]})
            elif (job.page, job.cell, job.kind) not in self._waiting:
                self._tell(job, {"kind": "cancelled"})
            self._next()

    def _next(self) -> None:
        if self.running or self.facts is None or not self._waiting or not self.worker:
            return
        key = min(self._waiting, key=lambda key: RANKS[key[2]])  # The first of the best rank.
        self.running = job = self._waiting.pop(key)
        self.worker.send(job.kind, job.ticket, *job.told)

    def _replace(self) -> None:
        job, self.running, self.facts = self.running, None, None
        self.restarts += 1
        self._fresh_deaths += 0 if job else 1
        if job:
            job.deaths += 1
            key = (job.page, job.cell, job.kind)
            if job.deaths >= MOST_DEATHS:
                sentence = f"the program that draws ended {job.deaths} times at this picture; was memory short?"
                self._tell(job, {"kind": "failed", "of": job.kind, "sentence": sentence})
            elif key not in self._waiting:
                self._waiting = {key: job, **self._waiting}
        if self._fresh_deaths > MOST_DEATHS:
            self.worker, self.trouble = None, "the program that draws does not start; the terminal shows why"
            self._tell_all({"kind": "trouble", "sentence": self.trouble})
            return
        self._tell_all({"kind": "restarting", "waiting": self.waiting})
        self.worker = self._start()

    def stop(self) -> None:
        """End the worker."""
        worker, self.worker = self.worker, None
        if worker:
            worker.stop()
