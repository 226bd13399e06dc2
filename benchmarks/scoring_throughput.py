"""What scoring costs beside its network: ``python -m benchmarks.scoring_throughput [images] [rounds]``.

Times a plain loop of open_clip (its own preprocessing, a ViT-B/32 of random weights) and ours, with and without the
cache of embeddings, in turns within one process on the same files; prints the ratios of the fastest rounds. Then, with
the small CLIP of the world so that reading dominates: the time to score 2,000 files anew and again, and the peak memory
of processes that score 500 and 2,000 of them.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import open_clip
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.functional import normalize

from src.data.world.render import render
from src.data.world.scenes import sample_scene
from src.eval.embedding_cache import CachedEncoder
from src.eval.encoders import OpenClipEncoder
from src.eval.read_ahead import BATCH

SIDE = 512
NUMBERS = (500, 2000)
WORLD = "local-dir:world/clip"


class RandomWeights(OpenClipEncoder):
    """The architecture alone: what it computes is as slow as with the published weights."""

    def load(self) -> nn.Module:
        """The network, untrained."""
        return open_clip.create_model(self.source)


def write_pictures(folder: Path, number: int) -> list[Path]:
    """Different scenes, of the size that Stable Diffusion draws."""
    paths = [folder / f"{index:05d}.png" for index in range(number)]
    for index, path in enumerate(paths):
        render(sample_scene(index)).resize((SIDE, SIDE)).save(path, compress_level=1)
    return paths


@torch.inference_mode()
def plain_loop(encoder: OpenClipEncoder, paths: list[Path]) -> torch.Tensor:
    """What one would write in a script."""
    config = encoder.model.visual.preprocess_cfg
    transform = open_clip.image_transform(config["size"], False, config["mean"], config["std"], interpolation="bicubic")
    batches = []
    for start in range(0, len(paths), BATCH):
        inputs = torch.stack([transform(Image.open(path)) for path in paths[start : start + BATCH]])
        batches.append(normalize(encoder.model.encode_image(inputs), dim=-1))
    return torch.cat(batches)


def seconds(function: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def throughput(paths: list[Path], cache: Path, rounds: int) -> Table:
    """All arms in turns; the cold cache is another folder each time."""
    encoder = RandomWeights("ViT-B-32-quickgelu", "openai")
    warm = CachedEncoder(encoder, cache / "warm")
    assert torch.allclose(warm.encode_images(paths), plain_loop(encoder, paths), atol=1e-5)
    measured: dict[str, list[float]] = {"plain loop": [], "ours": [], "ours, cold cache": [], "ours, warm cache": []}
    for index in range(rounds):
        cold = CachedEncoder(encoder, cache / str(index))
        arms = [
            lambda: plain_loop(encoder, paths),
            *(lambda e=e: e.encode_images(paths) for e in (encoder, cold, warm)),
        ]
        for name, arm in zip(measured, arms, strict=True):
            measured[name].append(seconds(arm))
    table = Table("arm", "fastest (s)", "median (s)", "ratio of fastest", title=f"{len(paths)} files, {rounds} rounds")
    fastest = min(measured["plain loop"])
    for name, times in measured.items():
        median = sorted(times)[len(times) // 2]
        table.add_row(name, f"{min(times):.2f}", f"{median:.2f}", f"{min(times) / fastest:.3f}")
    return table


def peak_memory(number: int, folder: Path, cache: Path) -> None:
    """Print the peak in MiB and the seconds of this process, which scores the first files of a folder."""
    encoder = CachedEncoder(OpenClipEncoder(WORLD), cache)
    paths = sorted(folder.glob("*.png"))[:number]
    assert encoder.identity
    taken = seconds(lambda: encoder.encode_images(paths))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, taken)


def memory(folder: Path, cache: Path) -> Table:
    """One process per number and per state of the cache."""
    table = Table("images", "cache", "seconds", "peak memory (MiB)", title=f"The world's CLIP, {SIDE} x {SIDE} pixels")
    for number in NUMBERS:
        for state in ("cold", "warm"):
            arguments = ["peak", str(number), str(folder), str(cache / str(number))]
            command = [sys.executable, "-m", "benchmarks.scoring_throughput", *arguments]
            peak, taken = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            table.add_row(str(number), state, f"{float(taken):.1f}", f"{float(peak):.0f}")
    return table


def main(number: int = 128, rounds: int = 3) -> None:
    """Measure and print."""
    with TemporaryDirectory() as folder:
        pictures = Path(folder, "pictures")
        pictures.mkdir()
        paths = write_pictures(pictures, max(NUMBERS))
        Console().print(throughput(paths[:number], Path(folder, "cache"), rounds))
        Console().print(memory(pictures, Path(folder, "memory")))


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        peak_memory(int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main(*map(int, sys.argv[1:3]))
