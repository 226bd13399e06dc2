"""Tell the loggers of a run its configuration, samples and exports, and the results of an evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from src.callbacks.trackers.wandb import Guard, WandbTracker
from src.data.request import Request
from src.eval.results.results import read_rows


def tensorboard_tracker(run_dir: str) -> TensorBoardLogger:
    """Make Lightning's logger that writes to ``<run_dir>/tensorboard``, seen with ``tensorboard --logdir <run_dir>``.

    A resumed training writes to the same folder, so that its curves continue.

    Args:
        run_dir: The run folder.

    Raises:
        ValueError: If the package is missing.
    """
    try:
        # A kill loses a second of it; by default two minutes.
        return TensorBoardLogger(run_dir, name="tensorboard", version="", default_hp_metric=False, flush_secs=1)
    except ModuleNotFoundError as error:
        raise ValueError('logger=tensorboard needs a package; type: pip install -e ".[tensorboard]"') from error


def log_config(loggers: Sequence[Logger], cfg: DictConfig) -> None:
    """Log every key of a run's configuration, resolved, as plain containers."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    for logger in loggers:
        logger.log_hyperparams(plain)


def log_exports(loggers: Sequence[Logger], exports: Mapping[str, str]) -> None:
    """Log the module's exports as W&B artifacts, and close the W&B run."""
    for logger in loggers:
        if isinstance(logger, WandbTracker):
            logger.log_exports(exports)
            logger.close()


def log_samples(
    loggers: Sequence[Logger], requests: Sequence[Request], images: Sequence[Image.Image], step: int
) -> None:
    """Log single images with their prompts, seeds and step.

    W&B gets them as ``samples/images`` and as rows of ``samples/table``, TensorBoard one by one.

    Args:
        loggers: Any of Lightning's loggers; those that take no images are skipped.
        requests: Request of each image.
        images: The drawn images.
        step: Step of the training.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger) and getattr(logger, "started", True):
            _guard(logger)(_to_wandb, logger, requests, images, step)
        elif isinstance(logger, TensorBoardLogger):
            _guard(logger)(_to_tensorboard, logger, requests, images, step)


def _guard(logger: Logger) -> Guard:
    return getattr(logger, "guard", None) or Guard(type(logger).__name__)


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


def log_results(
    loggers: Sequence[Logger],
    metrics: Mapping[str, Any],
    run_dir: Path,
    images_dir: Path,
    references: Mapping[str, Image.Image],
) -> None:
    """Log what a protocol wrote to its run folder, and close the W&B run.

    Args:
        loggers: Any of Lightning's loggers. W&B also gets ``test/samples`` with image, reference, prompt, seed, scores.
        metrics: Metrics that the protocol returned; the means in ``overall`` become ``test/<arm>/<score>``.
        run_dir: Folder with ``per_image.jsonl``.
        images_dir: Folder of the images that the column ``file`` of that table names.
        references: Name of a concept or a style to one of its images.
    """
    for logger in loggers:
        logger.log_metrics(means(metrics.get("overall", {}), "test"), step=0)
        if isinstance(logger, WandbTracker):
            if logger.started:
                logger.guard(_log_samples, logger, run_dir, images_dir, references)
            logger.close()
        else:
            logger.save()


def means(node: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Collect every ``mean`` at any depth, under its path joined by slashes."""
    found: dict[str, float] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and "mean" in value:
            found |= {f"{prefix}/{key}": value["mean"]} if value["mean"] is not None else {}
        elif isinstance(value, Mapping):
            found |= means(value, f"{prefix}/{key}")
    return found


def _log_samples(logger: WandbTracker, run_dir: Path, images_dir: Path, references: Mapping[str, Image.Image]) -> None:
    import wandb

    rows = [row for row in read_rows(run_dir / "per_image") if row.get("file")]
    if not rows:
        return
    columns = [column for column in rows[0] if column != "file"]
    photos = {name: wandb.Image(photo) for name, photo in references.items()}
    data = [
        [wandb.Image(str(images_dir / row["file"])), photos.get(_subject(row)), *(row[c] for c in columns)]
        for row in rows
    ]
    logger.log_table("test/samples", columns=["image", "reference", *columns], data=data)
    # The grids are logged as images too, because an offline table keeps its pixels in other files.
    for path in sorted(run_dir.glob("grid_*.png")):
        logger.log_image(f"test/{path.stem}", [str(path)])


def _subject(row: Mapping[str, Any]) -> str:
    """Return the concept or style that a row's image should resemble, if any."""
    return row.get("concept") or row.get("style") or ""
