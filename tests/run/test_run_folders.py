"""Every run has a folder of its own, however many start at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from src.run.folders import RANKS, RUN_DIR, made, new_folder, run_dir
from src.run.training import _alone_in

ROOT = Path(__file__).parents[2]
FROZEN = """
import datetime, sys
from src.run import folders

class Frozen(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 2, 3, 4, 5)

folders.datetime = Frozen
sys.argv = ["train.py", "-m", "seed=1,2"]
print("ready", flush=True)
sys.stdin.readline()
print(folders.made(folders.run_dir(ROOT)), folders.run_dir(ROOT))
print(folders.sweep_dir(ROOT, None, None, "train", resume=False))
"""
"""A process whose clock stands still, which chooses its folders when it is told to."""


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*RANKS, RUN_DIR):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_processes_that_start_in_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    program = FROZEN.replace("ROOT", repr(str(tmp_path)))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        for _ in range(4)
    ]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    found = [process.communicate()[0].split() for process in started]
    runs, again, sweeps = zip(*found, strict=True)
    assert again == runs
    assert sorted(Path(run).name for run in runs) == [
        "2026-01-02_03-04-05",
        *(f"2026-01-02_03-04-05_{number}" for number in (2, 3, 4)),
    ]
    assert len(set(sweeps)) == 4 and all(Path(folder).is_dir() for folder in (*runs, *sweeps))


def test_a_folder_is_made_where_it_is_named(tmp_path: Path) -> None:
    assert [new_folder(tmp_path / "a").name for _ in range(3)] == ["a", "a_2", "a_3"]
    root = str(tmp_path / "runs")
    assert not Path(run_dir(root)).exists()
    first, second = made(run_dir(root)), made(run_dir(root))
    assert first != second == run_dir(root) and Path(first).is_dir() and Path(second).is_dir()
    assert made(str(tmp_path / "elsewhere")) == str(tmp_path / "elsewhere")


def test_only_the_first_process_makes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(run_dir(str(tmp_path / "runs")))
    assert os.environ[RUN_DIR] == first
    monkeypatch.setenv("LOCAL_RANK", "1")
    # Lightning starts its ranks with the environment of the first.
    assert run_dir(str(tmp_path / "runs")) == first
    monkeypatch.delenv(RUN_DIR)
    elsewhere = Path(run_dir(str(tmp_path / "runs")))
    assert elsewhere.is_dir() and not elsewhere.is_relative_to(tmp_path)
    assert [str(path) for path in (tmp_path / "runs").iterdir()] == [first]


def test_two_processes_never_train_in_one_folder(tmp_path: Path) -> None:
    with _alone_in(tmp_path / "run"):
        told = "another process is training in .*run; wait for it, or leave resume=true"
        with pytest.raises(ValueError, match=told), _alone_in(tmp_path / "run"):
            raise AssertionError
    with _alone_in(tmp_path / "run"):
        pass
    with FileLock(tmp_path / "run" / ".lock", timeout=0):
        pass
