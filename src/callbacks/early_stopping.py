"""Early stopping for personalisation, when identity no longer improves and the prompt is being forgotten."""

from collections.abc import Sequence
from typing import Any, Protocol

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor

from src.callbacks.sample_grid import log_scores, requests_for
from src.callbacks.trackers.wandb import notice
from src.data.ranges import BelowOne, Count, Seed, Weight
from src.eval.scores.similarity import clip_t, pair_mean


class ImageEncoder(Protocol):
    """Measures identity: an encoder of ``src.eval.encoders.models``, or any other."""

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Encode images to unit embeddings, float32 ``(N, D)`` on the CPU."""


class TextImageEncoder(ImageEncoder, Protocol):
    """Measures how well images follow prompts."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Encode texts to unit embeddings, float32 ``(N, D)`` on the CPU."""


class FrontierStop(L.Callback):
    """Scores samples during training, and stops once they lose the prompt without gaining identity.

    Before the first step and every ``every_n_steps`` steps the same prompts are drawn with the same seeds, scored, and
    logged as ``val/dino`` (mean cosine with the photos) and ``val/clip_t`` (mean cosine with the prompts). Training
    stops when ``val/dino`` has not grown by ``min_delta`` for ``patience`` scores in a row and ``val/clip_t`` has lost
    more than the share ``prompt_drop`` of its first value.

    The module must have ``sample(requests) -> images``, the datamodule ``photos``. The training's random state does not
    change, and checkpoints keep the scores so far.

    Args:
        identity: Compares samples and photos.
        prompt: Compares samples and texts.
        prompts: Prompts to draw.
        texts: Text of each prompt for the encoder; None if prompts are plain text and name no concept.
        num_seeds: Number of samples per prompt.
        first_seed: Seed of the first sample.
        every_n_steps: Number of steps between scores.
        patience: Number of scores without growth before stopping.
        min_delta: Smallest growth of identity that counts.
        prompt_drop: Share of the first prompt score that may be lost, in [0, 1).

    Raises:
        ValueError: If an option is out of range or there is not one text per prompt.
    """

    def __init__(
        self,
        identity: ImageEncoder,
        prompt: TextImageEncoder,
        prompts: Sequence[str],
        texts: Sequence[str] | None = None,
        num_seeds: Count = 2,
        first_seed: Seed = 1000,
        every_n_steps: Count = 50,
        patience: Count = 3,
        min_delta: Weight = 0.005,
        prompt_drop: BelowOne = 0.1,
    ) -> None:
        texts = prompts if texts is None else texts
        if len(texts) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many texts, got {len(texts)}")
        if min(every_n_steps, patience, num_seeds, len(prompts)) < 1 or not 0 <= prompt_drop < 1:
            raise ValueError(
                f"every_n_steps={every_n_steps}, patience={patience}, num_seeds={num_seeds} and the number of prompts "
                f"({len(prompts)}) must be at least 1, and prompt_drop={prompt_drop} at least 0 and below 1"
            )
        self.identity, self.prompt = identity, prompt
        self.every_n_steps, self.patience = every_n_steps, patience
        self.min_delta, self.prompt_drop = min_delta, prompt_drop
        self.requests = requests_for(prompts, num_seeds, first_seed)
        self.texts = list(texts) * num_seeds
        self.scores: list[tuple[float, float]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the model before the first step; a resumed training has that score already."""
        if not trainer.is_global_zero:
            return
        photos = getattr(trainer.datamodule, "photos", None)  # type: ignore[attr-defined]
        if not photos:
            raise ValueError("FrontierStop compares samples with the datamodule's photos, but it has none")
        self.references = self.identity.encode_images(photos)
        if not self.scores:
            self._score(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        """Score the model, and stop all processes if the first one decides so."""
        if trainer.global_step % self.every_n_steps:
            return
        if trainer.is_global_zero:
            self._score(trainer, pl_module)
        if trainer.strategy.broadcast(self.beyond()):
            trainer.should_stop = True
            if trainer.is_global_zero:
                notice(f"stopped at step {trainer.global_step}: {self._reason()}")

    def beyond(self) -> bool:
        """Tell whether identity has stopped growing and the prompt score has lost its share."""
        first, last = self.scores[:1], self.scores[-1:]
        lost = any(start[1] - now[1] > self.prompt_drop * abs(start[1]) for start, now in zip(first, last, strict=True))
        return lost and self._checks_without_growth() >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Return all scores so far."""
        return {"scores": [list(score) for score in self.scores]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the scores of a checkpoint."""
        self.scores = [(dino, prompt) for dino, prompt in state_dict["scores"]]

    def _score(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with isolate_rng():
            images = pl_module.sample(self.requests)
            dino = pair_mean(self.identity.encode_images(images), self.references).mean().item()
            prompt = clip_t(self.prompt.encode_images(images), self.prompt.encode_texts(self.texts)).mean().item()
        self.scores.append((dino, prompt))
        log_scores(trainer, {"val/dino": dino, "val/clip_t": prompt})

    def _checks_without_growth(self) -> int:
        best, since = float("-inf"), 0
        for dino, _ in self.scores:
            since = 0 if dino >= best + self.min_delta else since + 1
            best = dino if since == 0 else best
        return since

    def _reason(self) -> str:
        return (
            f"val/dino has not grown by {self.min_delta:g} for {self._checks_without_growth()} scores and val/clip_t "
            f"fell from {self.scores[0][1]:.3f} to {self.scores[-1][1]:.3f}"
        )
