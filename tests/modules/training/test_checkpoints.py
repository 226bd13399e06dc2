"""Whatever happens while a checkpoint is written, there is one that can be read."""

import logging
import tempfile
from pathlib import Path

import pytest
import torch

from src.data.checkpoints import before, stored
from src.modules.training.checkpoints import WholeCheckpoints, intact

DAMAGE = {
    "half": lambda it: it[: len(it) // 2],
    "without its end": lambda it: it[:-1],
    "empty": lambda it: b"",
    "one byte of a weight": lambda it: it.replace(b"\x11" * 64, b"\x11" * 63 + b"\x12", 1),
    "zeros": lambda it: bytes(len(it)),
}


def content(step: int) -> dict:
    return {"global_step": step, "weights": torch.full((4096,), 0x11, dtype=torch.uint8)}


@pytest.fixture
def last(tmp_path: Path) -> Path:
    """The third of three checkpoints of one name."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    for step in (1, 2, 3):
        WholeCheckpoints().save_checkpoint(content(step), path)
    return path


def steps(run_dir: Path) -> list[int]:
    return [found["global_step"] for _, found in intact(run_dir)]


def test_the_one_before_is_kept_and_no_more(last: Path, tmp_path: Path) -> None:
    assert steps(tmp_path) == [3, 2] and stored(tmp_path) == [last, before(last)]
    assert sorted(last.parent.iterdir()) == [last, before(last)]
    WholeCheckpoints().remove_checkpoint(last)
    assert not list(last.parent.iterdir())


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_noticed_and_said(last: Path, tmp_path: Path, damage: str, caplog) -> None:
    caplog.set_level(logging.WARNING)
    last.write_bytes(DAMAGE[damage](last.read_bytes()))
    assert steps(tmp_path) == [2]
    assert caplog.messages == [f"the checkpoint {last} is damaged; the one before it is tried"]
    before(last).write_bytes(DAMAGE[damage](before(last).read_bytes()))
    assert steps(tmp_path) == []


class Killed(BaseException):
    """In the middle of writing."""


def test_a_kill_or_a_full_disk_while_writing_leaves_what_was_there(last: Path, tmp_path: Path, monkeypatch) -> None:
    for error in (Killed(), OSError("no space left on device")):

        def fails(checkpoint: dict, file, error: BaseException = error) -> None:
            file.write(b"half")
            raise error

        monkeypatch.setattr(torch, "save", fails)
        with pytest.raises(type(error)):
            WholeCheckpoints().save_checkpoint(content(4), last)
    assert steps(tmp_path) == [3, 2]


def test_a_kill_between_the_two_names_leaves_the_one_before(last: Path, tmp_path: Path) -> None:
    last.unlink()
    assert steps(tmp_path) == [2]


def test_it_is_written_beside_its_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary folder may be another file system, or full."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    WholeCheckpoints().save_checkpoint(content(1), tmp_path / "checkpoints" / "last.ckpt")
    assert steps(tmp_path) == [1]
