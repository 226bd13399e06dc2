"""What a run would cost, from two batches that it really draws, and keeps."""

import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from src.data.request import Request
from src.eval.manifest import IdentifiedGenerator, draw_missing, request_paths
from src.eval.results import Table


def measured_plan(generator: IdentifiedGenerator, requests: Sequence[Request], folder: str | Path) -> Table:
    """Count images; draw two batches of what is missing, the first of which warms up; extrapolate from the second.

    Returns:
        Images asked for, there already and to draw; bytes, time left and peak memory.
    """
    wanted = dict(zip(request_paths(generator, requests, folder), requests, strict=True))
    missing = [request for path, request in wanted.items() if not path.exists()]
    size = generator.batch_size
    seconds, drawn = 0.0, list[Path]()
    for start in (0, size):
        batch = missing[start : start + size]
        begin = time.perf_counter()
        drawn = draw_missing(generator, batch, folder) or drawn
        seconds = (time.perf_counter() - begin) / len(batch) if batch else seconds
    image_bytes = sum(path.stat().st_size for path in drawn) / max(len(drawn), 1)
    left = max(len(missing) - 2 * size, 0)
    rows = [
        ["images asked for", str(len(wanted))],
        ["there already", str(len(wanted) - len(missing))],
        ["drawn now, to measure", str(len(missing) - left)],
        ["left to draw", str(left)],
        ["time for them", f"{left * seconds / 60:.1f} min ({seconds:.2f} s an image)"],
        ["disk for them", f"{left * image_bytes / 1e6:.1f} MB"],
        ["peak memory", f"{_peak_bytes() / 2**30:.1f} GiB"],
    ]
    return Table("Dry run", ["", ""], rows)


def _peak_bytes() -> int:
    """Of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
