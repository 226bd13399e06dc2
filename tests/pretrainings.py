"""Short trainings of learners, whole or in two halves."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning as L
import torch
from torch.optim import AdamW

from src.modules.training.learner import Learner, LearnerModule


def module(learner: Learner, ema_decay: float | None = 0.99) -> LearnerModule:
    """AdamW, warm-up and cosine decay."""
    return LearnerModule(learner, partial(AdamW, lr=1e-3), None, "cosine", 100, 0.1, ema_decay)


class Stop(L.Callback):
    """Saves a checkpoint after two steps and ends there; the learning rate still follows the planned length."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def fit(trained: LearnerModule, data: L.LightningDataModule, steps: int = 2, resume=None, **options) -> L.Trainer:
    """Train on the CPU, with validation after every second step."""
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, **{"val_check_interval": 2, **options},
    )  # fmt: skip
    trainer.fit(trained, data, ckpt_path=resume, weights_only=True)
    return trainer


def check_resume(build: Callable[[Path], LearnerModule], data: Callable[[Path], L.LightningDataModule], folder: Path):
    """Four steps end where two and two do, bit for bit."""
    torch.set_num_threads(1)
    whole, first, second = (build(folder) for _ in range(3))
    fit(whole, data(folder), 4, limit_val_batches=0)
    fit(first, data(folder), 4, limit_val_batches=0, callbacks=[Stop(folder / "two.ckpt")])
    fit(second, data(folder), 4, folder / "two.ckpt", limit_val_batches=0)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name
    for ours, theirs in zip(*(one.ema.shadow_params if one.ema else () for one in (whole, second)), strict=True):
        assert torch.equal(ours, theirs)
