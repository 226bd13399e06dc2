"""Scenes as pictures, rendered once and kept on the disk: a store would hold them in memory, which is too small."""

import math
import os
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.lib.format import write_array_header_1_0
from rich.progress import track

from src.data.files import free_disk_or_raise, whole_file
from src.data.store import read_or_remove
from src.data.workers import mapped
from src.data.world.long_captions import long_scene, short_or_long_scene
from src.data.world.render import render
from src.data.world.scenes import (
    Scene,
    attribute_scene,
    every_style_scene,
    frame_scene,
    mixed_scene,
    mixed_with_pairs_scene,
    sample_scene,
)

SAMPLERS: dict[str, Callable[[int], Scene]] = {
    "scenes": sample_scene,
    "attributes": attribute_scene,
    "mixed": mixed_scene,
    "mixed_with_pairs": mixed_with_pairs_scene,
    "every_style": every_style_scene,
    "families": frame_scene,
    "long": long_scene,
    "short_or_long": short_or_long_scene,
}
CHUNK = 2000
CHECKSUM_BYTES, READ_BYTES = 4, 2**24
"""Size of the checksum behind the images of a file, and of what is read at a time to compare it."""


def rendered(cache_dir: str | Path, kind: str, first: int, number: int, size: int = 64) -> np.ndarray:
    """Return the images of ``number`` scenes with consecutive seeds, rendered on first use.

    Args:
        cache_dir: Folder for the array between runs.
        kind: A key of ``SAMPLERS``.
        first: Seed of the first scene.
        number: Number of scenes.
        size: Side of an image in pixels.

    Returns:
        A read-only memory map, uint8, shape ``(number, size, size, 3)``.

    Raises:
        ValueError: If ``kind`` is unknown.
    """
    if kind not in SAMPLERS:
        raise ValueError(f"unknown kind of scenes {kind!r}; choose one of {', '.join(SAMPLERS)}")
    path = Path(cache_dir) / f"{kind}_{first}_{number}_{size}.scenes"
    images = read_or_remove(path, _mapped)
    if images is None:
        with whole_file(path) as partial:
            _render_all(partial, kind, first, number, size)
        images = _mapped(path)
    return images


def _mapped(path: Path) -> np.ndarray:
    """Map the images of a file to memory; a checksum that stands behind them tells whether they are whole."""
    images = np.load(path, mmap_mode="r")
    if _stored_checksum(path) != _checksum(path, images.nbytes, path.stat().st_mtime_ns):
        raise ValueError(f"{path} does not have the content that was written")
    return images


def _stored_checksum(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-CHECKSUM_BYTES, os.SEEK_END)
        return file.read()


@cache
def _checksum(path: Path, number: int, changed: int) -> bytes:
    """CRC-32 of the images in a file, ``number`` bytes, once in each process until the file changes."""
    found = 0
    with path.open("rb") as file:
        file.seek(-CHECKSUM_BYTES - number, os.SEEK_END)
        for start in range(0, number, READ_BYTES):
            found = zlib.crc32(file.read(min(READ_BYTES, number - start)), found)
    return found.to_bytes(CHECKSUM_BYTES)


def _render_all(path: Path, kind: str, first: int, number: int, size: int) -> None:
    shape = (number, size, size, 3)
    # Before minutes of rendering. A disk that others fill meanwhile is an error of a write, but of a map it is a crash.
    free_disk_or_raise(path.parent, math.prod(shape))
    jobs = [(kind, first + start, min(CHUNK, number - start), size) for start in range(0, number, CHUNK)]
    with path.open("wb") as file, mapped(_render_chunk, jobs) as chunks:
        write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        found = 0
        for chunk in track(chunks, "rendering scenes", total=len(jobs)):
            file.write(chunk.data)
            found = zlib.crc32(chunk.data, found)
        file.write(found.to_bytes(CHECKSUM_BYTES))


def _render_chunk(job: tuple[str, int, int, int]) -> np.ndarray:
    kind, first, number, size = job
    return np.stack([np.asarray(render(SAMPLERS[kind](seed), size)) for seed in range(first, first + number)])
