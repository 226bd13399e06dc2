"""The bar of a training, its speed, memory and the time that is left."""

import csv
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from src.callbacks.progress import StepProgress, Throughput, samples_in
from src.data.peak_memory import peak_memory
from tests.callbacks.conftest import TinyData, TinyModule, tiny_trainer


def test_it_logs_rates_memory_and_remaining_time_as_often_as_losses(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="logs")
    trainer = tiny_trainer(tmp_path, 9, logger=logger, log_every_n_steps=3, callbacks=[Throughput()])
    trainer.fit(TinyModule(), TinyData())
    logger.save()
    with open(Path(logger.log_dir) / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["perf/it_s"]]
    assert [int(row["step"]) for row in rows] == [3, 6, 9]
    for row in rows:
        assert float(row["perf/samples_s"]) == pytest.approx(2 * float(row["perf/it_s"]))
        assert 0.05 < float(row["perf/peak_memory_gb"]) < 100
    left = [float(row["perf/hours_left"]) * 3600 * float(row["perf/it_s"]) for row in rows]
    assert left == pytest.approx([6, 3, 0])


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.zeros(3, 7), 3),
        ({"latents": torch.zeros(5, 2), "caption": ["a"] * 5, "step": torch.tensor(4)}, 5),
        ([torch.zeros(6, 100), torch.zeros(6)], 6),
        ((torch.zeros(4, 2), ["a", "b", "c", "d"]), 4),
        ("a word", 0),
    ],
)
def test_the_size_of_a_batch_of_any_structure(batch, size: int) -> None:
    assert samples_in(batch) == size


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel's own figure is there on Linux only")
def test_memory_without_a_gpu_is_the_largest_resident_set() -> None:
    measured = peak_memory(torch.device("cpu"))
    kibibytes = next(
        line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM")
    )
    assert measured == pytest.approx(1024 * int(kibibytes.split()[1]), rel=0.02)


def test_the_bar_of_a_training_by_steps_counts_no_epochs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    trainer = L.Trainer(
        accelerator="cpu", max_steps=3, logger=False, callbacks=[StepProgress()], default_root_dir=tmp_path
    )
    trainer.fit(TinyModule(), TinyData())
    told = capsys.readouterr().out
    assert "Training" in told and "3/3" in told and "Epoch" not in told


@pytest.mark.parametrize("columns", [60, 80])
def test_the_bar_stays_on_one_line_of_a_narrow_terminal(
    columns: int, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    trainer = L.Trainer(
        accelerator="cpu", max_steps=3, logger=False, callbacks=[StepProgress()], default_root_dir=tmp_path
    )
    trainer.fit(TinyModule(), TinyData())
    (bar,) = [line for line in capsys.readouterr().out.splitlines() if "3/3" in line]
    assert "Training" in bar and "• 0:00:00" in bar and "it/s" in bar
    assert len(bar.rstrip()) <= columns
