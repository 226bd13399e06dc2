"""What scoring costs beside its network: ``python -m benchmarks.scoring_throughput [images] [rounds]``.

First with the small CLIP of the world, so that reading dominates: the time to score 500 and 2,000 files anew and again,
and the peak memory of the processes that do it. Then a plain loop of open_clip (its own preprocessing, a ViT-B/32 of
random weights) and ours, with and without the cache of embeddings, in turns within one process on the same files; the
ratios are of the fastest rounds and, for machines that do other work besides, of the least processor time.
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
from src.eval.encoders.cache import CachedEncoder
from src.eval.encoders.models import BATCH, ImageEncoder, OpenClipEncoder

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


def seconds(function: Callable[[], object]) -> tuple[float, float]:
    """Of one call: by the clock, and of the processor in all threads."""
    start, worked = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - start, time.process_time() - worked


def throughput(paths: list[Path], cache: Path, rounds: int) -> Table:
    """All arms in turns; the cold cache is another folder each time."""
    encoder = RandomWeights("ViT-B-32-quickgelu", "openai")
    warm = CachedEncoder(encoder, cache / "warm")
    assert torch.allclose(warm.encode_images(paths), plain_loop(encoder, paths), atol=1e-5)
    measured: dict[str, list[tuple[float, float]]] = {"plain loop": []}
    for index in range(rounds):
        measured["plain loop"].append(seconds(lambda: plain_loop(encoder, paths)))
        cold = CachedEncoder(encoder, cache / str(index))
        arms: dict[str, ImageEncoder] = {"ours": encoder, "ours, cold cache": cold, "ours, warm cache": warm}
        for name, ours in arms.items():
            measured.setdefault(name, []).append(seconds(partial(ours.encode_images, paths)))
    columns = ("arm", "fastest (s)", "ratio", "least processor time (s)", "ratio")
    table = Table(*columns, title=f"{len(paths)} files of {SIDE} x {SIDE} pixels, ViT-B/32, {rounds} rounds")
    least = {name: [min(times) for times in zip(*rounds, strict=True)] for name, rounds in measured.items()}
    for name, (clock, worked) in least.items():
        ratios = [mine / plain for mine, plain in zip((clock, worked), least["plain loop"], strict=True)]
        table.add_row(name, f"{clock:.2f}", f"{ratios[0]:.3f}", f"{worked:.2f}", f"{ratios[1]:.3f}")
    return table


def peak_memory(number: int, folder: Path, cache: Path) -> None:
    """Score the first files of a folder; print the peak in MiB and the seconds of this process."""
    encoder = CachedEncoder(OpenClipEncoder(WORLD), cache)
    paths = sorted(folder.glob("*.png"))[:number]
    assert encoder.identity
    taken = seconds(lambda: encoder.encode_images(paths))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, *taken)


def memory(folder: Path, cache: Path) -> Table:
    """One process per number and per state of the cache."""
    columns = ("images", "cache", "seconds", "processor seconds", "peak memory (MiB)")
    table = Table(*columns, title=f"The CLIP of the world on files of {SIDE} x {SIDE} pixels")
    for number in NUMBERS:
        for state in ("cold", "warm"):
            arguments = ["peak", str(number), str(folder), str(cache / str(number))]
            command = [sys.executable, "-m", "benchmarks.scoring_throughput", *arguments]
            printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, encoding="utf-8").stdout
            peak, clock, worked = map(float, printed.split())
            table.add_row(str(number), state, f"{clock:.1f}", f"{worked:.1f}", f"{peak:.0f}")
    return table


def main(number: int = 64, rounds: int = 3) -> None:
    """Measure and print."""
    with TemporaryDirectory() as folder:
        pictures = Path(folder, "pictures")
        pictures.mkdir()
        paths = write_pictures(pictures, max(NUMBERS))
        # First: what a process starts with, it has from the one that starts it, and that is still small.
        Console().print(memory(pictures, Path(folder, "memory")))
        Console().print(throughput(paths[:number], Path(folder, "cache"), rounds))


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        peak_memory(int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main(*map(int, sys.argv[1:3]))
