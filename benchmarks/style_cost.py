"""What a style costs at generation: ``python -m benchmarks.style_cost [depth] [width] [budget] [rounds]``.

An Infinity of the given size with random weights draws one image, guidance on, in turns: plain, with principal feature
blending, with blending and structural attention correction, and as a naive pair of whole paths. Printed are ratios of
the fastest rounds in time, in bytes of keys and values, on a GPU the peak memory, and per scale the operations counted,
how many of them ran in a second, and what share that is of a large matrix product's rate on the same machine. Decoding
is left out: it costs every arm the same. Infinity-2B at 1024 x 1024: ``python -m benchmarks.style_cost 32 2048 1M 3``.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from src.modules.next_scale.infinity.sampling import InfinityDraw
from src.modules.next_scale.infinity.transformer import InfinityTransformer
from src.modules.next_scale.loop import Condition, Generation, OnScale, generate
from src.modules.next_scale.schedule import INFINITY_PREFIXES, ScaleSchedules, infinity_grids
from src.modules.style_svd.blending import StyleBlending, decay_weights, principal_features

BITS, TEXT_TOKENS, GUIDANCE = 32, 16, 3.0
PRODUCT = {"cpu": 1024, "cuda": 8192}
"""Side of the square matrices that tell the machine's rate."""


@dataclass
class Clock:
    """A hook that notes when each pass ended and what the cache then held."""

    ends: list[float] = field(default_factory=list)
    nbytes: int = 0

    def __call__(self, scale_index: int, generation: Generation) -> None:
        """Note one pass."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.nbytes = max(self.nbytes, generation.cache.nbytes)


@dataclass
class Arm:
    """One way to draw an image."""

    images: int
    hooks: Callable[[], list[OnScale]]
    seconds: list[list[float]] = field(default_factory=list)
    nbytes: int = 0
    peak_memory: int = 0
    operations: list[int] = field(default_factory=list)


class Setting:
    """A random model, its text and the arms."""

    def __init__(self, depth: int, width: int, budget: str) -> None:
        torch.manual_seed(0)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        with torch.device(self.device):
            transformer = InfinityTransformer(depth, width, max(4, width // 128), BITS)
            self.transformer = transformer.in_precision(self.dtype)
            self.schedule = ScaleSchedules(infinity_grids(), INFINITY_PREFIXES).schedule("1.000", budget)
            text = torch.randn(2, TEXT_TOKENS, self.transformer.config.text_channels, dtype=self.dtype)
            feature = torch.randn(1, BITS, *self.schedule.grids[-1])
        self.condition = self.transformer.condition(text, None)
        weights = decay_weights(1.0, BITS)
        style = principal_features(feature, weights)
        self.arms = {
            "plain": Arm(1, list),
            "blending": Arm(1, lambda: [StyleBlending(style, weights, correct_from=None)]),
            "blending and correction": Arm(1, lambda: [StyleBlending(style, weights)]),
            "two whole paths": Arm(2, list),
        }

    def draw(self, arm: Arm) -> Clock:
        """One image."""
        model = InfinityDraw.planned(self.transformer, self.schedule, GUIDANCE, 0.5, 0, 0.97, (0,))
        clock, condition = Clock([time.perf_counter()]), Condition(self.condition).repeated(arm.images)
        generate(Generation(model, condition, arm.images, torch.Generator().manual_seed(0)), [*arm.hooks(), clock])
        return clock

    def measure(self, arm: Arm) -> None:
        """Time one image."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        clock = self.draw(arm)
        arm.peak_memory = torch.cuda.max_memory_allocated() if self.device == "cuda" else 0
        arm.seconds.append([after - before for before, after in zip(clock.ends[:-1], clock.ends[1:], strict=True)])
        arm.nbytes = clock.nbytes

    def count(self, arm: Arm) -> None:
        """Operations of each pass."""
        counted = [0]
        with FlopCounterMode(display=False) as counter:
            model = InfinityDraw.planned(self.transformer, self.schedule, GUIDANCE, 0.5, 0, 0.97, (0,))
            generation = Generation(model, Condition(self.condition).repeated(arm.images), arm.images)
            generate(generation, [*arm.hooks(), lambda *_: counted.append(counter.get_total_flops())])
        arm.operations = [after - before for before, after in zip(counted[:-1], counted[1:], strict=True)]

    def rate(self, rounds: int = 5) -> float:
        """Operations in a second of a large matrix product, the fastest of some."""
        side = PRODUCT[self.device]
        matrix, seconds = torch.randn(side, side, device=self.device, dtype=self.dtype), []
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            matrix @ matrix
            if self.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
        return 2 * side**3 / min(seconds[1:])


def fastest(arm: Arm) -> list[float]:
    """Seconds of each pass in the fastest round."""
    return min(arm.seconds, key=sum)


def of_images(setting: Setting, title: str) -> Table:
    """A row for each arm."""
    plain = setting.arms["plain"]
    columns = ("arm", "seconds", "time", "operations", "keys and values", "peak memory")
    table = Table(*columns, title=f"{title}: ratios to plain")
    for name, arm in setting.arms.items():
        ratio = sum(fastest(arm)) / sum(fastest(plain))
        operations = sum(arm.operations) / sum(plain.operations)
        memory = f"{arm.peak_memory / 2**30:.1f} GiB" if arm.peak_memory else "-"
        numbers = (f"{ratio:.2f}", f"{operations:.2f}", f"{arm.nbytes / plain.nbytes:.2f}")
        table.add_row(name, f"{sum(fastest(arm)):.3f}", *numbers, memory)
    return table


def of_scales(setting: Setting) -> Table:
    """A row for each scale and one for all: operations counted, how many ran in a second, and the share of the rate."""
    rate, arms = setting.rate(), [setting.arms[name] for name in ("plain", "blending and correction")]
    units = ("GFLOP", "GFLOP/s", "share")
    headings = (f"{name}: {unit}" for name in ("plain", "styled") for unit in units)
    table = Table("grid", *headings, title=f"shares of {rate / 1e9:.0f} GFLOP/s, a matrix product's")
    scales = {f"{rows}x{columns}": slice(i, i + 1) for i, (rows, columns) in enumerate(setting.schedule.grids)}
    for name, at in {**scales, "all": slice(None)}.items():
        cells = [(sum(arm.operations[at]), sum(fastest(arm)[at])) for arm in arms]
        texts = ((f"{n / 1e9:.2f}", f"{n / s / 1e9:.0f}", f"{n / s / rate:.0%}") for n, s in cells)
        table.add_row(name, *(text for three in texts for text in three))
    return table


def main(depth: int = 8, width: int = 512, budget: str = "0.25M", rounds: int = 5) -> None:
    """Measure and print."""
    setting = Setting(depth, width, budget)
    with torch.no_grad():
        for arm in setting.arms.values():
            setting.count(arm)
        for _ in range(rounds):
            for arm in setting.arms.values():
                setting.measure(arm)
    console = Console()
    console.print(of_images(setting, f"Infinity, {depth} blocks, {width} wide, {budget}, {rounds} rounds"))
    console.print(of_scales(setting))


if __name__ == "__main__":
    depth, width, budget, rounds = [*sys.argv[1:], *("8", "512", "0.25M", "5")[len(sys.argv) - 1 :]]
    main(int(depth), int(width), budget, int(rounds))
