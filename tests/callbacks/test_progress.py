"""What the bar of a training says."""

from pathlib import Path

import lightning as L
import pytest

from src.callbacks.progress import StepProgress
from tests.callbacks.conftest import TinyData, TinyModule


def test_the_bar_of_a_training_by_steps_counts_no_epochs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    trainer = L.Trainer(
        accelerator="cpu", max_steps=3, logger=False, callbacks=[StepProgress()], default_root_dir=tmp_path
    )
    trainer.fit(TinyModule(), TinyData())
    told = capsys.readouterr().out
    assert "Training" in told and "3/3" in told and "Epoch" not in told
