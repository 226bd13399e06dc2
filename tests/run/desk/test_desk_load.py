"""Eight pages at once, hundreds of requests in a row, and a worker that is killed, with the process that draws."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from src.data.notes import read_note
from src.run.desk.worker import Worker
from tests.run.desk.desks import asked, heard, opened, place

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    base, _ = place(folder)
    with opened(folder, base, Worker) as (client, behind):
        heard(client, "ready", seconds=300)
        yield client, behind


def cell(name, version, prompt, seed=0):
    return {"cell": name, "version": version, "settings": {"prompt": prompt, "seed": seed}}


def note_of(behind, event):
    return read_note(str(Path(behind.folder) / "pictures" / event["picture"]))


def test_eight_pages_each_get_their_own_pictures(desk):
    client, behind = desk
    pages = [f"page{number}0000" for number in range(8)]
    for round_ in range(1, 4):
        for number, page in enumerate(pages):
            cells = [cell(str(seed), round_, f"a dog, {number} {round_}", seed) for seed in range(3)]
            asked(client, *cells, page=page)
    for number, page in enumerate(pages):
        end = time.monotonic() + 300
        newest = {}
        while len(newest) < 3:
            assert time.monotonic() < end
            events = client.get("/api/events", params={"page": page, "wait": "0"}).json()["events"]
            assert all(event.get("cell") in (None, "0", "1", "2") for event in events)
            newest = {one["cell"]: one for one in events if one["kind"] == "draw" and one["version"] == 3}
            time.sleep(0.05)
        for name, event in newest.items():
            note = note_of(behind, event)
            assert (note.prompt, note.seed) == (f"a dog, {number} 3", int(name))


def test_memory_stays_flat_over_500_requests(desk):
    client, behind = desk
    processes = [psutil.Process(), psutil.Process(behind.queue.worker.process.pid)]
    sizes = []
    for number in range(1, 501):
        asked(client, cell("0", number, f"a dog, {number}", number), page="memory000")
        after, done = 0, False
        while not done:
            told = client.get("/api/events", params={"page": "memory000", "after": after}).json()["events"]
            after = max([after, *(event["number"] for event in told)])
            done = any(event["kind"] == "draw" and event["version"] == number for event in told)
        if number in (150, 500):
            sizes.append([process.memory_info().rss / 2**20 for process in processes])
    print("MB after 150 and 500 requests, page's side and worker:", sizes)
    assert all(last - first < 40 for first, last in zip(*sizes, strict=True))


def test_a_killed_worker_is_started_again_and_every_picture_comes(desk):
    client, behind = desk
    asked(client, *(cell(str(seed), 1, "a dog after a fall", seed) for seed in range(6)), page="killed000")
    os.kill(behind.queue.worker.process.pid, signal.SIGKILL)
    events = heard(client, "draw", page="killed000", number=6, seconds=300)
    kinds = [event["kind"] for event in events]
    assert "restarting" in kinds and kinds.index("restarting") < kinds.index("ready")
    assert {event["cell"] for event in events if event["kind"] == "draw"} == set("012345")
