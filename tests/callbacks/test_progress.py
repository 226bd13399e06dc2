"""What the bar of a training says."""

from pathlib import Path

import pytest

from src.callbacks.progress import StepProgress
from tests.callbacks.conftest import TinyData, TinyModule, tiny_trainer


def test_the_bar_of_a_training_by_steps_counts_no_epochs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tiny_trainer(tmp_path, 3, callbacks=[StepProgress()], enable_progress_bar=True).fit(TinyModule(), TinyData())
    told = capsys.readouterr().out
    assert "Training" in told and "3/3" in told and "Epoch" not in told
