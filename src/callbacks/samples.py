"""What callbacks share that draw from a model while it learns."""

from collections.abc import Mapping, Sequence

import lightning as L
import torch

from src.data.request import Request


def requests_for(prompts: Sequence[str], num_seeds: int, first_seed: int) -> list[Request]:
    """Every prompt with each of the seeds, seed by seed."""
    return [Request(prompt, seed) for seed in range(first_seed, first_seed + num_seeds) for prompt in prompts]


def log_scores(trainer: L.Trainer, scores: Mapping[str, float]) -> None:
    """Tell the loggers, and put scores where ``ModelCheckpoint(monitor="val/clip_t")`` and searches look."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in scores.items()})
    for logger in trainer.loggers:
        logger.log_metrics(dict(scores), step=trainer.global_step)
