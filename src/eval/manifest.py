"""Requests to images on disk: each drawn once, written whole, and found again by what it was drawn from."""

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

from PIL import Image
from rich.progress import track

from src.data.pictures import image_grid, save_png_atomic
from src.data.request import Request
from src.data.turns import take_turns


class IdentifiedGenerator(Protocol):
    """Draws requests, and can say what it draws with."""

    batch_size: int

    def identity(self, prompt: str | None = None) -> dict[str, str]:
        """Settings and hashes of weights, of everything or of what ``prompt`` needs: equal ones draw equal images."""

    def sample(self, requests: Sequence[Request]) -> list[Image.Image]:
        """One image per request."""


def request_path(folder: Path, request: Request, identity: dict[str, str]) -> Path:
    """``<words of the prompt>_s<seed>_<hash>.png``; the hash covers prompt, seed and the generator's identity."""
    record = json.dumps([request.prompt, request.seed, sorted(identity.items())])
    words = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower()).strip("-")[:40]
    return folder / f"{words}_s{request.seed:04d}_{hashlib.sha256(record.encode()).hexdigest()[:10]}.png"


def request_paths(generator: IdentifiedGenerator, requests: Sequence[Request], folder: str | Path) -> list[Path]:
    """Where each request is, or will be, in ``folder``."""
    identities = {prompt: generator.identity(prompt) for prompt in {request.prompt for request in requests}}
    return [request_path(Path(folder), request, identities[request.prompt]) for request in requests]


def draw_missing(generator: IdentifiedGenerator, requests: Sequence[Request], folder: str | Path) -> list[Path]:
    """Draw what ``folder`` does not hold yet.

    A run that was killed goes on where it stopped; several processes share the work. Batches are cut from the whole
    list, so that what is drawn anew stands in the batch that it stood in: not even rounding differs.

    Returns:
        One path per request, in order. The request stands in the PNG's text chunks.
    """
    paths = request_paths(generator, requests, folder)
    drawable = list(dict.fromkeys(zip(requests, paths, strict=True)))
    size = generator.batch_size
    batches = [drawable[start : start + size] for start in range(0, len(drawable), size)]
    number = sum(not _is_drawn(batch) for batch in batches)
    with closing(take_turns(batches, _lock_path, _is_drawn)) as turns:
        for batch in track(turns, f"drawing {len(drawable)} images", total=number, disable=not number):
            images = generator.sample([request for request, _ in batch])
            for (request, path), image in zip(batch, images, strict=True):
                if not path.exists():
                    identity = generator.identity(request.prompt)
                    save_png_atomic(image, path, {"prompt": request.prompt, "seed": str(request.seed), **identity})
    return paths


def manifest_lines(requests: Sequence[Request], paths: Sequence[Path]) -> str:
    """JSON lines, one per request in order: file name, sha256 of the file, prompt, seed."""
    lines = [
        {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        | {"prompt": request.prompt, "seed": request.seed}
        for request, path in zip(requests, paths, strict=True)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def _is_drawn(batch: Sequence[tuple[Request, Path]]) -> bool:
    return all(path.exists() for _, path in batch)


def _lock_path(batch: Sequence[tuple[Request, Path]]) -> Path:
    names = " ".join(path.name for _, path in batch)
    return batch[0][1].parent / ".locks" / f"{hashlib.sha256(names.encode()).hexdigest()[:16]}.lock"


def write_grid(paths: Sequence[Path], requests: Sequence[Request], columns: int, target: str | Path) -> None:
    """All images of a call as one picture."""
    images = [Image.open(path) for path in paths]
    save_png_atomic(image_grid(images, columns, [f"{r.prompt} | seed {r.seed}" for r in requests]), target)
