"""What the desk adds to a picture: ``python -m benchmarks.desk_latency [rounds] [arguments of generate.py ...]``.

In turns, a picture is drawn by the bare generator, and asked of a desk over HTTP until its file can be fetched. Printed
are the ratio of the medians, at most 1.05 being the goal, and how soon the first preview is there, as a share of the
bare time, a fifth being the goal. Each picture has a prompt of its own, as a fader makes it.
"""

import json
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from rich.console import Console
from rich.table import Table

from src.data.request import Request
from src.run.desk.app import Desk, Start, application
from src.run.desk.drawer import Drawer
from src.run.desk.serve import bound

PAGE = "benchmark0"


def asked(address: str, path: str, told: dict[str, Any] | None = None) -> Any:
    """Ask the desk, as its page does."""
    body = None if told is None else json.dumps(told).encode()
    with urllib.request.urlopen(urllib.request.Request(address + path, body), timeout=600) as answer:  # noqa: S310
        content = answer.read()
    return json.loads(content) if path.startswith(("/api/e", "/api/d")) else content


def by_desk(address: str, prompt: str, number: int, after: int) -> tuple[float, float, int]:
    """Draw one picture by the desk: seconds until its file is here, until the first preview, and the last event."""
    begin, first = time.perf_counter(), 0.0
    cell = {"cell": "0", "version": number, "settings": {"prompt": prompt, "seed": number}}
    asked(address, "/api/draw", {"page": PAGE, "cells": [cell]})
    while True:
        for event in asked(address, f"/api/events?page={PAGE}&after={after}")["events"]:
            after = event["number"]
            if event.get("version") != number:
                continue
            if event["kind"] == "preview" and not first:
                first = time.perf_counter() - begin
            if event["kind"] == "failed":
                raise ValueError(event["sentence"])
            if event["kind"] == "draw":
                asked(address, f"/api/pictures/{event['picture']}")
                return time.perf_counter() - begin, first, after


def served(base: Sequence[str], folder: Path) -> tuple[str, Desk, uvicorn.Server]:
    """Start a desk, and wait for its model."""
    app, desk = application(Start(folder, base, {}, "world_sd", cache_dir=str(folder / "cache")))
    listening, port = bound("127.0.0.1", 27860)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
    while not (desk.queue and desk.queue.facts):
        time.sleep(0.1)
    return f"http://127.0.0.1:{port}", desk, server


def main(rounds: int = 9, *base: str) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as scratch:
        address, _, server = served(base, Path(scratch))
        drawer = Drawer(scratch)
        cfg, _ = drawer.composed([*base, "prompt='a dog'", "num_images=1"])
        generator = drawer.parts.generator(cfg.method)
        bare, whole, previews, after = list[float](), list[float](), list[float](), 0
        for number in range(rounds + 1):
            prompt = f"a red dog on the grass, {number}"
            begin = time.perf_counter()
            generator.sample([Request(prompt, number)])
            bare.append(time.perf_counter() - begin)
            seconds, first, after = by_desk(address, prompt, number, after)
            whole.append(seconds)
            previews.append(first)
        server.should_exit = True
        time.sleep(1)
    # The first round warms both up.
    middle = {
        name: statistics.median(times[1:]) for name, times in (("bare", bare), ("desk", whole), ("first", previews))
    }
    table = Table(
        "", "median (s)", "ratio to the bare generator", title=f"{' '.join(base) or 'the world'}, {rounds} rounds"
    )
    table.add_row("bare generator", f"{middle['bare']:.3f}", "1.00")
    table.add_row(
        "desk, from the change to the picture", f"{middle['desk']:.3f}", f"{middle['desk'] / middle['bare']:.3f}"
    )
    table.add_row("desk, to the first preview", f"{middle['first']:.3f}", f"{middle['first'] / middle['bare']:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9, *sys.argv[2:])
