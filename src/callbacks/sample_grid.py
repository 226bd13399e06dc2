"""Draws the same prompts with the same seeds while a model learns, with the model itself: no second pipeline."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L

from src.callbacks.trackers import log_samples
from src.data.pictures import image_grid, save_png_atomic
from src.data.request import Request


class SampleGrid(L.Callback):
    """Grids at the start, every ``every_n_steps`` steps and at the end, as ``<folder>/step-000500.png``.

    Loggers that take images get each one with its prompt, seed and step.

    The module offers ``sample(requests) -> images``. The datamodule's ``photos``, where it has them, are drawn once as
    ``references.png``.

    Args:
        folder: Where the grids go.
        prompts: What to draw; columns of the grid.
        num_seeds: Rows of the grid.
        every_n_steps: 0 for start and end only.
        first_seed: Seed of the first row.
    """

    def __init__(
        self, folder: str, prompts: Sequence[str], num_seeds: int = 2, every_n_steps: int = 0, first_seed: int = 0
    ) -> None:
        self.folder, self.every_n_steps = Path(folder), every_n_steps
        seeds = range(first_seed, first_seed + num_seeds)
        self.requests = [Request(prompt, seed) for seed in seeds for prompt in prompts]
        self.columns = len(prompts)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before."""
        photos = getattr(trainer.datamodule, "photos", None)  # type: ignore[attr-defined]
        if photos and trainer.is_global_zero:
            small = [photo.copy() for photo in photos]
            for photo in small:
                photo.thumbnail((256, 256))
            save_png_atomic(image_grid(small, len(small)), self.folder / "references.png")
        self._draw(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        """During."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After, also where another callback stopped the training early."""
        self._draw(trainer, pl_module)

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        path = self.folder / f"step-{trainer.global_step:06d}.png"
        if not trainer.is_global_zero or path.exists():
            return
        images = pl_module.sample(self.requests)
        captions = [f"{request.prompt} | seed {request.seed}" for request in self.requests]
        metadata = {"step": str(trainer.global_step), "requests": "\n".join(captions)}
        save_png_atomic(image_grid(images, self.columns, captions), path, metadata)
        log_samples(trainer.loggers, self.requests, images, trainer.global_step)
