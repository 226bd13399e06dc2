"""What LearnerModule does for every learner; whole trainings are with their methods."""

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader

from src.data.request import Request
from src.modules.training.learner import Learner, LearnerModule, TrainingRecord


class Line(Learner):
    """A slope and an offset, which has a rate of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.offset = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def losses(self, batch: Any, generators: list[Generator]) -> Tensor:
        return (self.slope * batch + self.offset) ** 2

    def groups(self) -> list[dict[str, Any]]:
        return [{"name": "slope", "params": [self.slope]}, {"name": "offset", "params": [self.offset]}]

    def export(self, record: TrainingRecord) -> dict[str, str]:
        return {"learning rate": str(record.learning_rate), "slope": str(self.slope.item())}


ADAMW = partial(torch.optim.AdamW, lr=0.1)


def test_a_group_has_the_rate_of_its_name_or_the_optimisers() -> None:
    module = LearnerModule(Line(), ADAMW, {"offset": 0.5})
    module._trainer = SimpleNamespace(max_steps=10)  # type: ignore[assignment]
    assert [group["lr"] for group in module.configure_optimizers().param_groups] == [0.1, 0.5]
    with pytest.raises(ValueError, match="method.rates names 'ofset', but the groups of parameters are slope, offset"):
        LearnerModule(Line(), ADAMW, {"ofset": 0.5})


@pytest.mark.parametrize(("share", "second"), [(None, 0.01), (0.2, 0.05)])
def test_a_warm_up_takes_its_steps_or_its_share_of_all(share: float | None, second: float) -> None:
    module = LearnerModule(Line(), ADAMW, num_warmup_steps=10, warmup_share=share)
    module._trainer = SimpleNamespace(max_steps=10)  # type: ignore[assignment]
    configured = module.configure_optimizers()
    configured["optimizer"].step()
    configured["lr_scheduler"]["scheduler"].step()
    assert configured["optimizer"].param_groups[0]["lr"] == pytest.approx(second)


def test_the_export_is_of_the_averaged_weights_and_says_how_they_were_trained() -> None:
    module = LearnerModule(Line(), ADAMW, ema_decay=0.5)
    module.learner.slope.data.fill_(3.0)
    with module.averaged_weights():
        assert module.learner.slope.item() == 1
    assert module.learner.slope.item() == 3
    assert module.export() == {"learning rate": "0.1", "slope": "1.0"}


class Told(Line):
    """Draws nothing and tells its slope."""

    def losses(self, batch: Any, generators: list[Generator]) -> Tensor:
        return (self.slope - 5).square()

    def sample(self, requests: Any, steps: int) -> Any:
        return self.slope.item()


class Slopes(L.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
        self.seen.append(module.learner.slope.item())


def fitted(module: LearnerModule, steps: int, folder: Path, **options: Any) -> tuple[L.Trainer, list[float]]:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    slopes, data = Slopes(), DataLoader([{"step": step} for step in range(steps)])
    given = {"callbacks": [slopes], "default_root_dir": folder, "accelerator": "cpu", **quiet, **options}
    trainer = L.Trainer(max_steps=steps, **given)
    trainer.fit(module, data, DataLoader([{"step": 0}]))
    return trainer, slopes.seen


def test_the_average_follows_with_its_decay_and_is_what_is_validated_drawn_and_exported(tmp_path: Path) -> None:
    """``a = d a + (1 - d) w`` after each step, with d = 0 in the first and at most ``(1 + k) / (10 + k)`` in step k."""
    module = LearnerModule(Told(), partial(torch.optim.SGD, lr=0.1, weight_decay=0.0), ema_decay=0.15)
    trainer, slopes = fitted(module, 4, tmp_path, val_check_interval=4)
    average = slopes[0]
    for slope in slopes[1:]:
        average = 0.15 * average + 0.85 * slope
    assert module.sample([]) == pytest.approx(average, rel=1e-6) != pytest.approx(slopes[-1], rel=1e-3)
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx((average - 5) ** 2, rel=1e-5)
    assert module.learner.slope.item() == slopes[-1]
    assert float(module.export()["slope"]) == pytest.approx(average, rel=1e-6)


def test_a_cosine_ends_at_nothing(tmp_path: Path) -> None:
    module = LearnerModule(Told(), partial(torch.optim.SGD, lr=0.1, weight_decay=0.0), schedule="cosine")
    trainer, slopes = fitted(module, 4, tmp_path)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
    slope, expected = 1.0, []
    for step in range(4):
        slope -= 0.1 * (1 + math.cos(math.pi * step / 4)) / 2 * 2 * (slope - 5)
        expected.append(slope)
    assert slopes == pytest.approx(expected, rel=1e-5)


def test_loggers_and_checkpoints_are_told_plain_values() -> None:
    module = LearnerModule(Line(), ADAMW, {"offset": 0.5}, schedule="cosine")
    assert dict(module.hparams) == {
        **{"learning_rate": 0.1, "weight_decay": 0.01, "rates": {"offset": 0.5}},
        **{"schedule": "cosine", "num_warmup_steps": 0, "ema_decay": None},
    }


def test_a_learner_that_draws_nothing_says_so() -> None:
    with pytest.raises(ValueError, match="Line draws no images; leave callbacks.samples out"):
        LearnerModule(Line(), ADAMW).sample([Request("a dog", 0)])
