import multiprocessing
import os
import signal
import time
from pathlib import Path

from src.data.files import take_turns


def work(folder: Path, name: str, seconds: float) -> None:
    def lock(task: int) -> Path:
        return folder / "locks" / f"{task}.lock"

    for task in take_turns(range(12), lock, lambda task: (folder / str(task)).exists()):
        with (folder / f"log_{name}").open("a", encoding="utf-8") as log:
            log.write(f"{task}\n")
        time.sleep(seconds)
        (folder / str(task)).touch()


def start(*arguments: object) -> multiprocessing.Process:
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    return process


def done_by(folder: Path, name: str) -> list[int]:
    return [int(line) for line in (folder / f"log_{name}").read_text(encoding="utf-8").split()]


def test_two_processes_share_the_tasks_and_do_each_once(tmp_path: Path) -> None:
    processes = [start(tmp_path, name, 0.1) for name in ("a", "b")]
    for process in processes:
        process.join(60)
    done = done_by(tmp_path, "a") + done_by(tmp_path, "b")
    assert sorted(done) == list(range(12))
    assert done_by(tmp_path, "a") and done_by(tmp_path, "b")


def test_the_task_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    process = start(tmp_path, "killed", 30)
    deadline = time.monotonic() + 60
    while not (tmp_path / "log_killed").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    work(tmp_path, "heir", 0)
    assert done_by(tmp_path, "heir") == list(range(12))


def test_what_is_done_is_not_yielded(tmp_path: Path) -> None:
    assert list(take_turns([1, 2], lambda task: tmp_path / f"{task}.lock", lambda task: task == 1)) == [2]
