"""Rendered scenes on disk: drawn once, memory-mapped afterwards, the same bytes on every machine."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from rich.progress import track

from src.data.world.long_captions import long_scene, short_or_long_scene
from src.data.world.render import render
from src.data.world.scenes import Scene, attribute_scene, frame_scene, mixed_scene, mixed_with_pairs_scene, sample_scene

VALIDATION_START = 10_000_000
"""First scene seed that no training set reaches; validation scenes count up from here."""

SAMPLERS: dict[str, Callable[[int], Scene]] = {
    "scenes": sample_scene,
    "attributes": attribute_scene,
    "mixed": mixed_scene,
    "mixed_with_pairs": mixed_with_pairs_scene,
    "frames": frame_scene,
    "long": long_scene,
    "short_or_long": short_or_long_scene,
}
CHUNK = 2000


def rendered(cache_dir: str | Path, kind: str, first: int, number: int, size: int = 64) -> np.ndarray:
    """The images of ``number`` scenes with consecutive seeds, rendered on first use.

    Args:
        cache_dir: Where the array is kept between runs.
        kind: A key of ``SAMPLERS``.
        first: Seed of the first scene.
        number: How many scenes.
        size: Image side in pixels.

    Returns:
        A read-only memory map, uint8, shape ``(number, size, size, 3)``.

    Raises:
        ValueError: If ``kind`` is unknown.
    """
    if kind not in SAMPLERS:
        raise ValueError(f"unknown kind of scenes {kind!r}; choose one of {', '.join(SAMPLERS)}")
    path = Path(cache_dir) / f"{kind}_{first}_{number}_{size}.npy"
    if not path.exists():
        _render_all(path, kind, first, number, size)
    return np.load(path, mmap_mode="r")


def _render_all(path: Path, kind: str, first: int, number: int, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    images = open_memmap(partial, mode="w+", dtype=np.uint8, shape=(number, size, size, 3))
    starts = range(0, number, CHUNK)
    jobs = [(kind, first + start, min(CHUNK, number - start), size) for start in starts]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for start, chunk in zip(track(starts, "rendering scenes"), pool.map(_render_chunk, jobs), strict=True):
            images[start : start + len(chunk)] = chunk
    images.flush()
    os.replace(partial, path)


def _render_chunk(job: tuple[str, int, int, int]) -> np.ndarray:
    kind, first, number, size = job
    return np.stack([np.asarray(render(SAMPLERS[kind](seed), size)) for seed in range(first, first + number)])


def to_pixel_values(images: np.ndarray) -> np.ndarray:
    """Turn uint8 images ``(B, H, W, 3)`` into float32 ``(B, 3, H, W)`` in [-1, 1]."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / 127.5 - 1.0
