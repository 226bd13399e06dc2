"""What a style costs at generation: ``python -m benchmarks.style_cost [depth] [width] [budget] [rounds]``.

An Infinity of the given size with random weights draws one image, guidance on, in turns: plain, with principal feature
blending, with blending and structural attention correction, and as a naive pair of whole paths. Printed are ratios of
the fastest rounds in time, in bytes of keys and values, and per scale the operations counted and how many of them ran
in a second. Decoding is left out: it costs every arm the same.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from src.modules.principal_features import decay_weights
from src.modules.scale_ar.generation import Condition, Generation, OnScale, generate
from src.modules.scale_ar.infinity import InfinityTransformer
from src.modules.scale_ar.infinity_sampling import InfinityDraw
from src.modules.scale_ar.schedule import INFINITY_PREFIXES, ScaleSchedules, infinity_grids
from src.modules.style_blending import StyleBlending

BITS, TEXT_TOKENS, GUIDANCE = 32, 16, 3.0


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
    operations: list[int] = field(default_factory=list)


class Setting:
    """A random model, its text and the arms."""

    def __init__(self, depth: int, width: int, budget: str) -> None:
        torch.manual_seed(0)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        with torch.device(device):
            self.transformer = InfinityTransformer(depth, width, max(4, width // 128), BITS).to(dtype)
            self.schedule = ScaleSchedules(infinity_grids(), INFINITY_PREFIXES).schedule("1.000", budget)
            text = torch.randn(2, TEXT_TOKENS, self.transformer.config.text_channels, dtype=dtype)
            style = torch.randn(1, 1, BITS, *self.schedule.grids[-1])
        self.condition = self.transformer.condition(text, None)
        weights = decay_weights(1.0, BITS)
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
        clock = self.draw(arm)
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


def fastest(arm: Arm) -> list[float]:
    """Seconds of each pass in the fastest round."""
    return min(arm.seconds, key=sum)


def main(depth: int = 8, width: int = 512, budget: str = "0.25M", rounds: int = 5) -> None:
    """Measure and print."""
    setting = Setting(depth, width, budget)
    with torch.no_grad():
        for arm in setting.arms.values():
            setting.count(arm)
        for _ in range(rounds):
            for arm in setting.arms.values():
                setting.measure(arm)
    plain, title = setting.arms["plain"], f"Infinity, {depth} blocks, {width} wide, {budget}, {rounds} rounds"
    table = Table("arm", "seconds", "time", "operations", "keys and values", title=f"{title}: ratios to plain")
    for name, arm in setting.arms.items():
        ratio = sum(fastest(arm)) / sum(fastest(plain))
        operations = sum(arm.operations) / sum(plain.operations)
        table.add_row(
            name, f"{sum(fastest(arm)):.3f}", f"{ratio:.2f}", f"{operations:.2f}", f"{arm.nbytes / plain.nbytes:.2f}"
        )
    console = Console()
    console.print(table)
    styled = setting.arms["blending and correction"]
    table = Table("grid", *(f"{name}: {unit}" for name in ("plain", "styled") for unit in ("GFLOP", "GFLOP/s")))
    for index, (rows, columns) in enumerate(setting.schedule.grids):
        cells = [(arm.operations[index] / 1e9, fastest(arm)[index]) for arm in (plain, styled)]
        table.add_row(f"{rows}x{columns}", *(text for g, s in cells for text in (f"{g:.2f}", f"{g / s:.0f}")))
    console.print(table)


if __name__ == "__main__":
    depth, width, budget, rounds = [*sys.argv[1:], *("8", "512", "0.25M", "5")[len(sys.argv) - 1 :]]
    main(int(depth), int(width), budget, int(rounds))
