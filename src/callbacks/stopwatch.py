"""What a training costs, measured while it runs: seconds of a step, gradients, a checkpoint, one picture."""

import math
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image

from src.data.peak_memory import peak_memory
from src.data.request import Request
from src.modules.training.learner import LearnerModule


class Stopwatch(L.Callback):
    """Measures the steps of a training, and what it leaves at its end.

    Args:
        folder: Scratch, for a checkpoint whose size is taken.
        prompt: What is drawn after the last step; None to draw nothing.

    Attributes:
        trained: Number of numbers that are trained.
        photos: Number of images that are learnt from; None where the data do not count them.
        has_prior: Whether it also learns from images of the class.
        seconds: Seconds of each step of the optimiser, on the device.
        norms: Norm of all gradients in each step.
        checkpoint_bytes: Size of a checkpoint.
        peak: Most bytes allocated on the GPU, or the largest resident set of the process.
        picture: What was drawn after the last step, and ``picture_seconds`` what that took.
    """

    def __init__(self, folder: str | Path, prompt: str | None = None) -> None:
        self.folder, self.prompt = Path(folder), prompt
        self.trained = self.checkpoint_bytes = self.peak = 0
        self.photos: int | None = None
        self.has_prior = False
        self.seconds: list[float] = []
        self.norms: list[float] = []
        self.picture: Image.Image | None = None
        self.picture_seconds = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count what is trained, and begin to measure."""
        self.trained = sum(one.numel() for one in pl_module.parameters() if one.requires_grad)
        learner: Any = getattr(pl_module, "learner", None)
        members = getattr(learner, "members", [learner])
        self.has_prior = any(getattr(one, "prior", None) is not None for one in members)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        each = getattr(data, "each", [data])
        photos = [getattr(one, "photos", None) for one in each]
        self.photos = sum(map(len, filter(None, photos))) or _number_of(getattr(data, "train", None))
        self._start(pl_module)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Take the norm of the gradients."""
        gradients = [one.grad for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
        norms = [float(norm) for norm in torch._foreach_norm(gradients)] if gradients else []
        self.norms.append(math.hypot(*norms))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the time of a step of the optimiser, which may take several batches."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            _wait(pl_module.device)
            self.seconds.append(time.perf_counter() - self.started)
            self._start(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw a picture, and take the size of a checkpoint."""
        assert isinstance(pl_module, LearnerModule)
        if self.prompt is not None:
            self._start(pl_module)
            [self.picture] = pl_module.sample([Request(self.prompt, 0)])
            self.picture_seconds = time.perf_counter() - self.started
        self.peak = peak_memory(pl_module.device)
        path = self.folder / "measured.ckpt"
        trainer.save_checkpoint(path)
        self.checkpoint_bytes = path.stat().st_size
        path.unlink()

    def _start(self, module: L.LightningModule) -> None:
        _wait(module.device)
        self.started = time.perf_counter()


def _number_of(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except TypeError:
        return None


def _wait(device: torch.device) -> None:
    """Wait for what a GPU has still to do; torch hands work on and goes ahead."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
