"""TensorBoard beside the CSV log."""

from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from src.callbacks.sample_grid import SampleGrid
from src.callbacks.trackers.loggers import tensorboard_tracker
from tests.callbacks.conftest import TinyData, TinyModule, tiny_trainer


def train(folder: Path, steps: int) -> None:
    loggers = [CSVLogger(folder, name="logs"), tensorboard_tracker(str(folder))]
    grid = SampleGrid(str(folder / "samples"), ["a <rex>", "a cat"], num_seeds=2)
    tiny_trainer(folder, steps, logger=loggers, callbacks=[grid]).fit(TinyModule(), TinyData())


def test_curves_and_single_samples_are_there_and_a_second_part_goes_on(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path, 2)
    train(tmp_path, 3)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0, "scalars": 0}).Reload()
    tags = {f"samples/{prompt} | seed={seed}" for prompt in ("a <rex>", "a cat") for seed in (0, 1)}
    assert set(events.Tags()["images"]) == tags
    assert sorted(image.step for image in events.Images("samples/a cat | seed=1")) == [0, 2, 3]
    assert "train/loss" in events.Tags()["scalars"]
    assert (tmp_path / "logs" / "version_0" / "metrics.csv").exists()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning.fabric.loggers.tensorboard.{name}", False)
    with pytest.raises(ValueError, match="type: pip install -e"):
        tensorboard_tracker(str(tmp_path))
