"""Processes that render end with the one that started them, and a full disk is a sentence."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from src.data import files
from src.data.workers import mapped
from src.data.world.render import render
from src.data.world.rendered import CHUNK, rendered
from src.data.world.scenes import sample_scene

ROOT = Path(__file__).parents[2]
RENDER = "import sys; from src.data.world.rendered import rendered; rendered(sys.argv[1], 'scenes', 0, {}, size=32)"


def workers_of(number: int) -> list[int]:
    """Processes whose parent is this one."""
    stats = {int(path.parent.name): path for path in Path("/proc").glob("[0-9]*/stat")}
    found = []
    for pid, path in stats.items():
        try:
            state, parent = path.read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == number and state != "Z":
            found.append(pid)
    return found


def alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", RENDER.format(1_000_000), str(tmp_path)], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not (started := workers_of(parent.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert started
    deadline = time.monotonic() + 30
    while any(alive(worker) for worker in started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [worker for worker in started if alive(worker)]


def test_images_are_what_one_process_renders_and_are_mapped(tmp_path: Path) -> None:
    number = CHUNK + 3
    images = rendered(tmp_path, "scenes", 5, number, size=16)
    assert images.shape == (number, 16, 16, 3) and images.dtype == np.uint8 and isinstance(images, np.memmap)
    for index in (0, CHUNK - 1, CHUNK, number - 1):
        assert (images[index] == np.asarray(render(sample_scene(5 + index), 16))).all()


def test_no_room_is_said_before_anything_is_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 0, 10**6))
    with pytest.raises(ValueError, match="needs about 122.9 MB, but only 1.0 MB are free"):
        rendered(tmp_path, "scenes", 0, 10_000)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_disk_that_others_fill_meanwhile_ends_in_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    unchecked = "import src.data.world.rendered as scenes; scenes.free_disk_or_raise = lambda *a: None; "
    program = unchecked + RENDER.format(1000)
    inside = 'mount -t tmpfs -o size=1m tmpfs "$0" && "$1" -c "$2" "$0"; status=$?; ls -A "$0"; exit $status'
    command = ["unshare", "-rm", "sh", "-c", inside, str(tmp_path), sys.executable, program]
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("only what may mount a small disk can fill it")
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert ended.returncode == 1 and "No space left on device" in ended.stderr
    assert "scenes_0" not in ended.stdout


def test_after_an_error_no_further_job_is_begun(tmp_path: Path) -> None:
    jobs = [str(tmp_path / str(number)) for number in range(200)]
    with suppress(RuntimeError), mapped(slowly, jobs) as results:
        next(results)
        raise RuntimeError("the block fails")
    assert len(list(tmp_path.iterdir())) < 100


def slowly(path: str) -> None:
    """A job that leaves a trace."""
    time.sleep(0.02)
    Path(path).touch()
