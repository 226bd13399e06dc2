"""What concepts cost at generation: ``python -m benchmarks.blending_cost [pipeline folder] [steps] [rounds]``.

Times the stock pipeline and the same pipeline with 1, 4 and 8 concepts, in turns within one process, and prints the
ratios of the fastest rounds. Text keys and values are computed once per call, so the ratio should be at most 1.
"""

import sys
import time

import torch
from rich.console import Console
from rich.table import Table

from src.modules.backbones.base import cross_attention_projections
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.bank import ConceptBank
from src.modules.latexblend.generator import blended

PROMPT = "a dog, a cat, a bird, a car, a cup, a hat, a fish and a duck"
COUNTS = (0, 1, 4, 8)


def placements(backbone: UNetBackbone, number: int) -> list[tuple[ConceptBank, list[int]]]:
    """``number`` random banks of two rows, on the first phrases of the prompt (article, noun, comma ...)."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for index in range(number):
        rows = {
            name: torch.randn(2, linear.out_features, generator=generator).to(backbone.device, backbone.dtype)
            for name, linear in cross_attention_projections(backbone.unet).items()
        }
        found.append((ConceptBank(rows, {}), [1 + 3 * index, 2 + 3 * index]))
    return found


def seconds(backbone: UNetBackbone, steps: int, concepts: list | None) -> float:
    """One image, guidance on; None is the plain pipeline with nothing installed."""

    def draw() -> float:
        start = time.perf_counter()
        backbone.pipeline(PROMPT, num_inference_steps=steps, guidance_scale=5.0, output_type="latent")
        if backbone.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    if concepts is None:
        return draw()
    with blended(backbone.unet, [concepts]):
        return draw()


def main(path: str = "world/sd", steps: int = 25, rounds: int = 9) -> None:
    """Measure and print."""
    backbone = UNetBackbone.from_pretrained(path)
    arms = {f"{count} concepts": placements(backbone, count) for count in COUNTS}
    measured: dict[str, list[float]] = {"plain pipeline": [], **{name: [] for name in arms}}
    with torch.no_grad():
        seconds(backbone, 2, None)
        for _ in range(rounds):
            measured["plain pipeline"].append(seconds(backbone, steps, None))
            for name, concepts in arms.items():
                measured[name].append(seconds(backbone, steps, concepts))
    table = Table(
        "arm", "fastest (s)", "median (s)", "ratio of fastest", title=f"{path}, {steps} steps, {rounds} rounds"
    )
    fastest = min(measured["plain pipeline"])
    for name, times in measured.items():
        median = sorted(times)[len(times) // 2]
        table.add_row(name, f"{min(times):.3f}", f"{median:.3f}", f"{min(times) / fastest:.3f}")
    Console().print(table)


if __name__ == "__main__":
    path, *numbers = sys.argv[1:4] or ["world/sd"]
    main(path, *map(int, numbers))
