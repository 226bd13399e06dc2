"""A training stops at the first number that is not finite, and what was saved before stays."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader

from src.data.finite import check_finite
from src.modules.training.learner import Learner, LearnerModule, TrainingRecord


class Slope(Learner):
    """Learns one number; ``spoil`` changes the loss of a step, or the weight after it."""

    def __init__(self, spoil: str = "", at: int = 3) -> None:
        super().__init__()
        self.slope, self.spoil, self.at, self.steps = nn.Parameter(torch.ones(1)), spoil, at, 0

    def losses(self, batch: Any, generators: list[Generator]) -> Tensor:
        self.steps += 1
        loss = (self.slope - 5).square()
        if self.steps < self.at:
            return loss
        if self.spoil == "gradient":  # Finite forward, not finite backward.
            return loss + (self.slope * 0).sqrt()
        return loss * (math.nan if self.spoil == "loss" else 1)

    def after_step(self) -> None:
        if self.spoil == "weight" and self.steps == self.at:
            self.slope.data.fill_(math.inf)

    def export(self, record: TrainingRecord) -> dict[str, str]:
        return {"slope": str(self.slope.item())}


def fit(learner: Learner, folder: Path, rate: float = 0.1, steps: int = 6, **options: Any) -> LearnerModule:
    keep = ModelCheckpoint(folder, "newest", save_last=True, every_n_train_steps=1, save_on_exception=True)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    given = {"callbacks": [keep], "default_root_dir": folder, "accelerator": "cpu", "max_steps": steps, **quiet}
    module = LearnerModule(learner, partial(torch.optim.SGD, lr=rate, weight_decay=0.0))
    L.Trainer(**{**given, **options}).fit(module, DataLoader([{"step": step} for step in range(steps)]))
    return module


def saved(folder: Path) -> tuple[int, float]:
    """Step and weight of the last checkpoint."""
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    return checkpoint["global_step"], checkpoint["state_dict"]["learner.slope"].item()


@pytest.mark.parametrize(("spoil", "named"), [("loss", "the loss"), ("gradient", "a gradient")])
def test_a_training_stops_at_the_step_and_the_checkpoint_of_before_stays(
    tmp_path: Path, spoil: str, named: str
) -> None:
    fit(Slope(), tmp_path / "good", steps=2)
    with pytest.raises(ValueError, match=rf"^{named} is not finite at step 3: lower .*method\.optimizer\.lr .*0\.1\)"):
        fit(Slope(spoil), tmp_path / "bad")
    assert saved(tmp_path / "bad") == saved(tmp_path / "good")


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    fit(Slope(), tmp_path / "good", steps=2)
    with pytest.raises(ValueError, match="^the weight slope is not finite at step 3: lower"):
        fit(Slope("weight"), tmp_path / "bad")
    assert saved(tmp_path / "bad") == saved(tmp_path / "good")


def test_a_rate_that_is_far_too_high_is_said_and_exports_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not finite at step \d: .*1e\+30"):
        fit(Slope(), tmp_path, rate=1e30)
    learner = Slope()
    learner.slope.data.fill_(math.nan)
    with pytest.raises(ValueError, match="the weight slope is not finite, so nothing is exported"):
        LearnerModule(learner, torch.optim.SGD).export()


def test_a_picture_that_is_not_finite_stops_the_training_too(tmp_path: Path) -> None:
    class Drawing(Slope):
        def sample(self, requests: Any, steps: int) -> Any:
            check_finite(self.slope * (math.nan if steps == 3 else 1), "the pixels")

    class Draws(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
            module.sample([])

    fit(Slope(), tmp_path / "good", steps=2)
    keep = ModelCheckpoint(tmp_path / "bad", "newest", save_last=True, every_n_train_steps=2, save_on_exception=True)
    with pytest.raises(ValueError, match=r"what the model computes \(the pixels are not finite .* at step 3: lower"):
        fit(Drawing(), tmp_path / "bad", callbacks=[Draws(), keep])
    assert saved(tmp_path / "bad") == saved(tmp_path / "good")


def test_a_checkpoint_that_is_not_finite_is_not_resumed(tmp_path: Path) -> None:
    fit(Slope(), tmp_path, steps=2)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    checkpoint["state_dict"]["learner.slope"].fill_(math.nan)
    with pytest.raises(ValueError, match="the weight slope is not finite, so nothing is resumed"):
        LearnerModule(Slope(), torch.optim.SGD).on_load_checkpoint(checkpoint)


def test_a_gradient_scaler_skips_a_step_by_itself(tmp_path: Path) -> None:
    class Scaled(L.pytorch.plugins.precision.MixedPrecision):
        def __init__(self) -> None:
            super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu"))

    module = fit(Slope("gradient", at=4), tmp_path, steps=4, precision=None, plugins=[Scaled()])
    assert module.learner.slope.isfinite().all()


def test_all_processes_stop_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of this process is finite, that of another is not."""
    asked: list[bool] = []

    def decision(strategy: Any, finite: bool, all: bool = True) -> bool:
        asked.append(finite and all)
        return False

    monkeypatch.setattr(L.pytorch.strategies.SingleDeviceStrategy, "reduce_boolean_decision", decision, raising=False)
    with pytest.raises(ValueError, match="the loss is not finite at step 1"):
        fit(Slope(), tmp_path)
    assert asked == [True]
