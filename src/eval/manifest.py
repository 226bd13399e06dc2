"""Requests to images on disk: each drawn once, written whole, and found again by what it was drawn from."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image
from rich.progress import track

from src.data.images import load_image
from src.data.pictures import image_grid, save_png_atomic
from src.data.request import Request


class IdentifiedGenerator(Protocol):
    """Draws requests, and can say what it draws with."""

    batch_size: int

    def identity(self) -> dict[str, str]:
        """Settings and hashes of weights: equal identities draw equal images."""

    def sample(self, requests: Sequence[Request]) -> list[Image.Image]:
        """One image per request."""


def request_path(folder: Path, request: Request, identity: dict[str, str]) -> Path:
    """``<words of the prompt>_s<seed>_<hash>.png``; the hash covers prompt, seed and the generator's identity."""
    record = json.dumps([request.prompt, request.seed, sorted(identity.items())])
    words = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower()).strip("-")[:40]
    return folder / f"{words}_s{request.seed:04d}_{hashlib.sha256(record.encode()).hexdigest()[:10]}.png"


def draw_missing(generator: IdentifiedGenerator, requests: Sequence[Request], folder: str | Path) -> list[Path]:
    """Draw what ``folder`` does not hold yet; a run that was killed goes on where it stopped.

    Returns:
        One path per request, in order. The request stands in the PNG's text chunks.
    """
    identity = generator.identity()
    paths = [request_path(Path(folder), request, identity) for request in requests]
    missing = [(request, path) for request, path in zip(requests, paths, strict=True) if not path.exists()]
    starts = range(0, len(missing), generator.batch_size)
    for start in track(starts, f"drawing {len(missing)} images", disable=not missing):
        batch = missing[start : start + generator.batch_size]
        images = generator.sample([request for request, _ in batch])
        for (request, path), image in zip(batch, images, strict=True):
            save_png_atomic(image, path, {"prompt": request.prompt, "seed": str(request.seed), **identity})
    return paths


def drawn(generator: IdentifiedGenerator, requests: Sequence[Request], folder: str | Path) -> list[Image.Image]:
    """The images of ``draw_missing``, read back."""
    return [load_image(path) for path in draw_missing(generator, requests, folder)]


def write_grid(paths: Sequence[Path], requests: Sequence[Request], columns: int, target: str | Path) -> None:
    """All images of a call as one picture."""
    images = [Image.open(path) for path in paths]
    save_png_atomic(image_grid(images, columns, [f"{r.prompt} | seed {r.seed}" for r in requests]), target)
