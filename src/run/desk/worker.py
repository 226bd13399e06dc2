"""The process that draws: the desk talks to it through a pipe, and starts another when it dies."""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

Message = tuple[Any, ...]
"""What happened and to which ticket: ``("ready", facts)``, ``("step", ticket, share, seconds)``, ``("done", ...)``."""


def _process(pipe: Connection, *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the desk, which sends a stop.
    # What libraries print, bars above all, is nobody's answer.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    work(pipe, *arguments)


def work(pipe: Connection, folder: str, base: Sequence[str], cache_dir: str) -> None:
    """Draw until a stop is sent or the pipe is closed.

    Args:
        pipe: Sends jobs ``("draw", ticket, ...)``, ``("cancel", ticket)`` and ``("stop", 0)``, and takes messages.
        folder: Where pictures are kept.
        base: Arguments that the desk was started with.
        cache_dir: Where embeddings are kept.
    """
    # Seconds of imports, in this process alone.
    from src.run.desk.drawer import CancelledError, Drawer
    from src.run.desk.reading import Reading

    current, cancelled = [0], set[int]()

    def report(kind: str, *told: Any) -> None:
        pipe.send((kind, current[0], *told))

    def is_cancelled() -> bool:
        while pipe.poll():
            kind, ticket, *_ = pipe.recv()
            if kind == "stop":
                raise EOFError
            if kind == "cancel":
                cancelled.add(ticket)
        return current[0] in cancelled

    drawer = Drawer(folder, report, is_cancelled)
    reading = Reading(drawer, cache_dir)
    jobs: dict[str, Callable[..., dict[str, Any]]] = {
        "draw": drawer.draw,
        "attention": reading.attention,
        "numbers": reading.numbers,
    }

    def answered(kind: str, job: Callable[..., dict[str, Any]], *told: Any) -> None:
        try:
            report(kind, job(*told))
        except CancelledError:
            report("cancelled")
        except EOFError:
            raise
        except Exception as error:
            sentence = drawer.sentence(error)
            if sentence.startswith("a bug of ours"):
                traceback.print_exc()
            report("failed", sentence)

    with contextlib.suppress(EOFError, OSError):
        answered("ready", drawer.facts, base)
        while True:
            kind, current[0], *told = pipe.recv()
            if kind == "stop":
                return
            if kind in jobs:
                cancelled.clear()
                answered("done", jobs[kind], *told)


class Worker:
    """A process of ``work``, and the thread that listens to it.

    Args:
        arguments: Those of ``work``, without the pipe.
        on_message: Is called with each message, from another thread; with ``("died",)`` when the process ends.
    """

    def __init__(self, arguments: Sequence[Any], on_message: Callable[[Message], None]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_process, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()
        self._on_message = on_message
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._on_message(self.pipe.recv())
        self._on_message(("died",))

    def send(self, *message: Any) -> None:
        """Send a job or a cancellation; to a process that died nothing is sent."""
        with contextlib.suppress(OSError, ValueError):
            self.pipe.send(message)

    def stop(self) -> None:
        """End the process, by force where it does not answer."""
        self.send("stop", 0)
        self.process.join(3)
        self.process.terminate()
