"""What concepts cost at generation: ``python -m benchmarks.blending_cost [pipeline folder] [steps] [rounds]``.

Times the stock pipeline and the same pipeline with 1, 4 and 8 concepts, and with 4 that are guided in a fifth
of the steps, in turns within one process, and prints the ratios of the fastest rounds. Text keys and values are read
once per call, so the ratio should be at most 1 without guidance; with it, at most 1.3 is the goal.
"""

import sys
import time
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from src.modules.backbones.base import text_projections
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.bank import ConceptBank
from src.modules.latexblend.generator import Placement, blended
from src.modules.latexblend.guidance import BlendingGuidance

PROMPT = "a dog, a cat, a bird, a car, a cup, a hat, a fish and a duck"
COUNTS = (0, 1, 4, 8)


def placements(backbone: UNetBackbone, number: int) -> list[Placement]:
    """``number`` random banks of two rows, on the first phrases of the prompt (article, noun, comma ...)."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for index in range(number):
        rows = {
            name: torch.randn(2, linear.out_features, generator=generator).to(backbone.device, backbone.dtype)
            for name, linear in text_projections(backbone.unet).items()
        }
        found.append(Placement(ConceptBank(rows, {}), [1 + 3 * index, 2 + 3 * index]))
    return found


def seconds(
    backbone: UNetBackbone, steps: int, concepts: list | None, guidance: BlendingGuidance | None = None
) -> float:
    """One image, classifier-free guidance on; None is the plain pipeline with nothing installed."""

    def draw(**arguments: Any) -> float:
        # On the CPU, seconds of this process alone: other work on the machine does not count.
        clock = time.perf_counter if backbone.device.type == "cuda" else time.process_time
        start = clock()
        backbone.pipeline(PROMPT, num_inference_steps=steps, guidance_scale=5.0, output_type="latent", **arguments)
        if backbone.device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    if concepts is None:
        return draw()
    phrases = [[positions for _, positions in concepts]]
    guiding = (guidance or BlendingGuidance()).acting(backbone, phrases)
    with blended(backbone.unet, [concepts]), guiding as arguments:
        return draw(**arguments)


def main(path: str = "world/sd", steps: int = 25, rounds: int = 9) -> None:
    """Measure and print."""
    backbone = UNetBackbone.from_pretrained(path)
    arms = {f"{count} concepts": placements(backbone, count) for count in COUNTS}
    forms: list[Literal["latent", "noise"]] = ["latent", "noise"]
    guided = {f"4 concepts, {form} guided": BlendingGuidance(steps // 5, form=form) for form in forms}
    measured: dict[str, list[float]] = {name: [] for name in ("plain pipeline", *arms, *guided)}
    with torch.no_grad():
        seconds(backbone, 2, None)
        for _ in range(rounds):
            measured["plain pipeline"].append(seconds(backbone, steps, None))
            for name, concepts in arms.items():
                measured[name].append(seconds(backbone, steps, concepts))
            for name, guidance in guided.items():
                measured[name].append(seconds(backbone, steps, arms["4 concepts"], guidance))
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
