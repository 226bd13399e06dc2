"""metrics.csv is whole at any time: what was logged is on the disk."""

import csv
from pathlib import Path

import pytest

from src.callbacks.trackers import csv_log
from src.callbacks.trackers.csv_log import FlushedCSVLogger


def rows(folder: Path) -> list[dict[str, str]]:
    with next(folder.glob("logs/*/metrics.csv")).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_line_is_on_the_disk_when_it_is_logged(tmp_path: Path) -> None:
    logger = FlushedCSVLogger(str(tmp_path))
    for step in range(3):
        logger.log_metrics({"train/loss": step / 2}, step=step)
        assert [row["train/loss"] for row in rows(tmp_path)] == [str(number / 2) for number in range(step + 1)]
    logger.log_metrics({"val/loss": 0.25}, step=2)
    logger.log_metrics({"train/loss": 2.0}, step=3)
    assert [(row["step"], row["train/loss"], row["val/loss"]) for row in rows(tmp_path)] == [
        ("0", "0.0", ""), ("1", "0.5", ""), ("2", "1.0", ""), ("2", "", "0.25"), ("3", "2.0", ""),
    ]  # fmt: skip
    again = FlushedCSVLogger(str(tmp_path))
    again.log_metrics({"train/loss": 3.0}, step=4)
    assert [path.name for path in sorted(tmp_path.glob("logs/*"))] == ["version_0", "version_1"]


def test_a_kill_while_a_column_is_added_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = FlushedCSVLogger(str(tmp_path))
    logger.log_metrics({"train/loss": 1.0}, step=0)
    monkeypatch.setattr(csv_log.csv.DictWriter, "writeheader", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        logger.log_metrics({"val/loss": 1.0}, step=0)
    assert [row["train/loss"] for row in rows(tmp_path)] == ["1.0"]
