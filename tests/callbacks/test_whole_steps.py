"""A training that Ctrl-C or an error ends, and that goes on, logs what an undisturbed one logs."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from torch.utils.data import Dataset

from src.callbacks.run_report import read_curves
from src.callbacks.trackers.csv_log import FlushedCSVLogger
from src.callbacks.whole_steps import WholeSteps
from src.data.order import Draw, SteppedData
from tests.callbacks.conftest import TinyModule, tiny_trainer

STEPS, WHERE = 9, 4


class Rows(Dataset):
    """Batches that depend on the step alone."""

    def __len__(self) -> int:
        return 2

    def __getitems__(self, draws: list[Draw]) -> dict[str, torch.Tensor]:
        return {"inputs": torch.full((2, 4), float(draws[0].step))}


class RowsData(SteppedData):
    """Them, loaded as in all our trainings."""

    train, val = Rows(), Rows()


class Interrupted(TinyModule):
    """Something happens once, at a place of step ``WHERE``."""

    def __init__(self, place: str = "", happen: Any = None) -> None:
        super().__init__()
        self.place, self.happen = place, happen

    def at(self, place: str) -> None:
        if place == self.place and self.global_step == WHERE:
            happen, self.happen = self.happen, lambda: None
            happen()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.at("before")
        loss = self.loss(batch)
        self.log("train/loss", loss)
        self.at("after")
        return loss

    def on_train_batch_end(self, *args: Any) -> None:
        self.at("end")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.at("validation")
        self.log("val/loss", self.loss(batch))

    def loss(self, batch: Any) -> torch.Tensor:
        return self.trained(self.frozen(batch["inputs"])).square().mean()


def interrupt() -> None:
    # Its handler has run when this returns; a signal sent to the process may reach another thread, and two may be one.
    signal.raise_signal(signal.SIGINT)


def fail() -> None:
    raise RuntimeError("out of memory")


def train(folder: Path, module: L.LightningModule, resume: bool = False, accumulate: int = 1) -> None:
    checkpoint = ModelCheckpoint(
        dirpath=folder / "checkpoints", every_n_train_steps=100, save_last=True, save_on_exception=True
    )
    trainer = tiny_trainer(
        folder, STEPS, logger=FlushedCSVLogger(str(folder)), enable_checkpointing=True, max_epochs=-1,
        callbacks=[LearningRateMonitor("step"), WholeSteps(), checkpoint], val_check_interval=2 * accumulate,
        check_val_every_n_epoch=None, num_sanity_val_steps=0, accumulate_grad_batches=accumulate,
    )  # fmt: skip
    trainer.fit(
        module, RowsData(2), ckpt_path=folder / "checkpoints" / "last.ckpt" if resume else None, weights_only=False
    )


def logged(folder: Path) -> dict[str, Any]:
    return read_curves(sorted(folder.glob("logs/version_*/metrics.csv")))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("place", "happen", "ends"),
    [
        ("before", interrupt, SystemExit),
        ("after", interrupt, SystemExit),
        ("end", interrupt, SystemExit),
        ("validation", interrupt, SystemExit),
        ("before", fail, RuntimeError),
        ("after", fail, RuntimeError),
    ],
)
def test_steps_are_numbered_as_if_nothing_had_happened(
    tmp_path: Path, place: str, happen: Any, ends: type[BaseException], accumulate: int
) -> None:
    train(tmp_path / "whole", Interrupted(), accumulate=accumulate)
    with pytest.raises(ends):
        train(tmp_path / "parts", Interrupted(place, happen), accumulate=accumulate)
    train(tmp_path / "parts", Interrupted(), resume=True, accumulate=accumulate)
    whole, parts = logged(tmp_path / "whole"), logged(tmp_path / "parts")
    assert whole["train/loss"][0] == list(range(STEPS)) and len(whole["val/loss"][0]) == STEPS // 2
    assert parts == whole


def test_an_error_after_a_step_costs_its_own_line_alone(tmp_path: Path) -> None:
    train(tmp_path / "whole", Interrupted())
    with pytest.raises(RuntimeError):
        train(tmp_path / "parts", Interrupted("end", fail))
    train(tmp_path / "parts", Interrupted(), resume=True)
    steps, losses = logged(tmp_path / "whole")["train/loss"]
    del steps[WHERE - 1], losses[WHERE - 1]
    assert logged(tmp_path / "parts")["train/loss"] == (steps, losses)


@pytest.fixture
def listening() -> Iterator[None]:
    """Python's own handler: a process that a shell started in the background inherits one that ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
def test_a_second_ctrl_c_stops_at_once_and_afterwards_nobody_listens(tmp_path: Path) -> None:
    def twice() -> None:
        interrupt()
        interrupt()

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        train(tmp_path, Interrupted("before", twice))
    signal.signal(signal.SIGINT, before)
    assert logged(tmp_path)["train/loss"][0] == list(range(WHERE))
    train(tmp_path / "whole", Interrupted())
    assert signal.getsignal(signal.SIGINT) is before
