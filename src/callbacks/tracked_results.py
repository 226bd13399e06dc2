"""What an evaluation tells the loggers of its run: means as ``test/...``, and every image with its scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from lightning.pytorch.loggers import Logger
from PIL import Image

from src.callbacks.wandb_tracker import WandbTracker


def log_results(
    loggers: Sequence[Logger],
    metrics: Mapping[str, Any],
    run_dir: Path,
    images_dir: Path,
    references: Mapping[str, Image.Image],
) -> None:
    """Log what a protocol left in its run folder; then the W&B run is closed.

    Args:
        loggers: Any of Lightning's. W&B also gets ``test/samples``: image, reference, prompt, seed and scores in a row.
        metrics: What the protocol returned; the means in its ``overall`` become ``test/<arm>/<score>``.
        run_dir: Holds ``per_image.parquet``.
        images_dir: Holds the images that its column ``file`` names.
        references: Name of a concept or a style to one of its pictures.
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
    """Every ``mean`` at any depth, under its path joined by slashes."""
    found: dict[str, float] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and "mean" in value:
            found |= {f"{prefix}/{key}": value["mean"]} if value["mean"] is not None else {}
        elif isinstance(value, Mapping):
            found |= means(value, f"{prefix}/{key}")
    return found


def _log_samples(logger: WandbTracker, run_dir: Path, images_dir: Path, references: Mapping[str, Image.Image]) -> None:
    import wandb

    rows = [row for row in pq.read_table(run_dir / "per_image.parquet").to_pylist() if row.get("file")]
    if not rows:
        return
    columns = [column for column in rows[0] if column != "file"]
    photos = {name: wandb.Image(photo) for name, photo in references.items()}
    data = [
        [wandb.Image(str(images_dir / row["file"])), photos.get(_subject(row)), *(row[c] for c in columns)]
        for row in rows
    ]
    logger.log_table("test/samples", columns=["image", "reference", *columns], data=data)
    # As plain images, too: an offline table keeps its pixels apart from it.
    for path in sorted(run_dir.glob("grid_*.png")):
        logger.log_image(f"test/{path.stem}", [str(path)])


def _subject(row: Mapping[str, Any]) -> str:
    """What a row's image is to be like: a concept, a style, or nothing."""
    return row.get("concept") or row.get("style") or ""
