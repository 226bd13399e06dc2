"""Draw the same prompts with the same seeds during training, with the model itself and no second pipeline."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image

from src.callbacks.trackers.loggers import log_samples
from src.data.ranges import Count, Number, Seed
from src.data.request import Request
from src.eval.grid import Grid
from src.eval.profile import Profile


def requests_for(prompts: Sequence[str], num_seeds: int, first_seed: int) -> list[Request]:
    """Make a request for every prompt with each of the seeds, seed by seed."""
    return [Request(prompt, seed) for seed in range(first_seed, first_seed + num_seeds) for prompt in prompts]


def log_scores(trainer: L.Trainer, scores: Mapping[str, float]) -> None:
    """Log scores, also where ``ModelCheckpoint(monitor="val/clip_t")`` and searches look for them."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in scores.items()})
    for logger in trainer.loggers:
        logger.log_metrics(dict(scores), step=trainer.global_step)


class SampleGrid(L.Callback):
    """Draws a grid at the start, every ``every_n_steps`` steps and at the end, as ``<folder>/step-000500.png``.

    Loggers that take images get each one with its prompt, seed and step. With a profile, the mean CLIP-T of the grid's
    images is logged as ``val/clip_t``.

    The module must have ``sample(requests) -> images``; the training's random state does not change. The datamodule's
    ``photos``, if it has any, are written once as ``references.png``.

    Args:
        folder: Folder for the grids.
        prompts: Prompts to draw, the columns of the grid.
        num_seeds: Number of seeds, the rows of the grid.
        every_n_steps: Number of steps between grids; 0 for start and end only.
        first_seed: Seed of the first row.
        profile: Scores the images; None for no score.
        texts: Text of each prompt for the profile's CLIP; None if prompts are plain text and name no concept.
        noun: What each ``<name>`` is called in the plain twins of the prompts, which are drawn once, with the first
            seed, as the first row of every grid; None for no such row.

    Raises:
        ValueError: If there is not one text per prompt.
    """

    def __init__(
        self,
        folder: str,
        prompts: Sequence[str],
        num_seeds: Count = 2,
        every_n_steps: Number = 0,
        first_seed: Seed = 0,
        profile: Profile | None = None,
        texts: Sequence[str] | None = None,
        noun: str | None = None,
    ) -> None:
        texts = prompts if texts is None else texts
        if len(texts) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many texts, got {len(texts)}")
        self.folder, self.every_n_steps, self.profile = Path(folder), every_n_steps, profile
        self.requests = requests_for(prompts, num_seeds, first_seed)
        self.columns, self.texts = len(prompts), list(texts) * num_seeds
        twins = [re.sub(r"<[^<>]*>", noun, prompt) for prompt in prompts] if noun else []
        self.twins, self.plain = requests_for(twins, 1, first_seed), list[Image.Image]()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the photos, and draw the first grid."""
        photos = getattr(trainer.datamodule, "photos", None)  # type: ignore[attr-defined]
        if photos and trainer.is_global_zero:
            small = [photo.copy() for photo in photos]
            for photo in small:
                photo.thumbnail((256, 256))
            Grid(small, len(small)).save(self.folder / "references.png")
        self._draw(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        """Draw a grid if it is due."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the last grid, also if another callback stopped the training early."""
        self._draw(trainer, pl_module)

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        path = self.folder / f"step-{trainer.global_step:06d}.png"
        if not trainer.is_global_zero or path.exists():
            return
        with isolate_rng():
            images = pl_module.sample(self.requests)
            if self.profile is not None:
                log_scores(trainer, {"val/clip_t": self._clip_t(images, self.profile)})
            if not self.plain and self.twins:
                self.plain = pl_module.sample(self.twins)
        captions = [f"{request.prompt} | seed {request.seed}" for request in (*self.twins, *self.requests)]
        metadata = {"step": str(trainer.global_step), "requests": "\n".join(captions)}
        # The file comes last: without it, a training that was killed draws and logs this grid again.
        log_samples(trainer.loggers, self.requests, images, trainer.global_step)
        Grid([*self.plain, *images], self.columns, captions).save(path, metadata)

    def _clip_t(self, images: Sequence[Image.Image], profile: Profile) -> float:
        pictures, texts = profile.clip.encode_images(images), profile.clip.encode_texts(self.texts)
        return profile.text_score(pictures, texts).mean().item()
