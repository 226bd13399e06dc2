"""What the loggers of a run are told besides numbers: configuration, samples, exports. Each takes what it can."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from src.callbacks.guard import Guard
from src.callbacks.wandb_tracker import WandbTracker
from src.data.request import Request


def log_config(loggers: Sequence[Logger], cfg: DictConfig) -> None:
    """Every key of a run's configuration, resolved, as plain containers."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    for logger in loggers:
        logger.log_hyperparams(plain)


def log_exports(loggers: Sequence[Logger], exports: Mapping[str, str]) -> None:
    """What the module exported, as W&B artifacts; then the W&B run is closed."""
    for logger in loggers:
        if isinstance(logger, WandbTracker):
            logger.log_exports(exports)
            logger.close()


def log_samples(
    loggers: Sequence[Logger], requests: Sequence[Request], images: Sequence[Image.Image], step: int
) -> None:
    """Single images with their prompts, seeds and step.

    To W&B as ``samples/images`` and as rows of ``samples/table``, to TensorBoard as one image per prompt and seed.

    Args:
        loggers: Any of Lightning's; those that take no images are passed over.
        requests: One per image.
        images: What was drawn.
        step: When.
    """
    for logger in loggers:
        guard = getattr(logger, "guard", Guard(type(logger).__name__))
        if isinstance(logger, WandbLogger) and getattr(logger, "started", True):
            guard(_to_wandb, logger, requests, images, step)
        elif isinstance(logger, TensorBoardLogger):
            guard(_to_tensorboard, logger, requests, images, step)


def _to_wandb(logger: Any, requests: Sequence[Request], images: Sequence[Image.Image], step: int) -> None:
    import wandb

    captions = [f"{request.prompt} | seed={request.seed} | step={step}" for request in requests]
    logger.log_image("samples/images", list(images), step=step, caption=captions)
    pairs = zip(images, requests, strict=True)
    rows = [[wandb.Image(image), request.prompt, request.seed, step] for image, request in pairs]
    logger.log_table("samples/table", columns=["image", "prompt", "seed", "step"], data=rows, step=step)


def _to_tensorboard(logger: Any, requests: Sequence[Request], images: Sequence[Image.Image], step: int) -> None:
    for image, request in zip(images, requests, strict=True):
        tag = f"samples/{request.prompt} | seed={request.seed}"
        logger.experiment.add_image(tag, np.asarray(image.convert("RGB")), step, dataformats="HWC")
