"""What a call of ``generate.py`` costs beside a bare script: ``python -m benchmarks.start_time [rounds]``.

In turns, a process of its own each: imports of diffusers' pipeline alone, a script that draws four pictures with it and
saves them, and ``generate.py`` drawing as many. Seconds are those of the processor, of all threads, and ratios are to
the script: what is above one is ours, and the share of the imports is what no command that uses the library can save.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = "import torch\nfrom diffusers import StableDiffusionPipeline\nStableDiffusionPipeline.from_pretrained"
SCRIPT = f"""
{IMPORTS}
pipeline = StableDiffusionPipeline.from_pretrained({str(ROOT / "world" / "sd")!r}, torch_dtype=torch.float32)
pipeline.set_progress_bar_config(disable=True)
generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
for at, image in enumerate(pipeline(["a dog"] * 4, 25, guidance_scale=3.0, generator=generators).images):
    image.save(f"{{at}}.png")
"""
"""Pictures of the same size, steps and guidance as ``backbone=world_sd`` draws."""
ARMS = {
    "imports of the pipeline": ["-c", IMPORTS],
    "bare script": ["-c", SCRIPT],
    "generate.py": [str(ROOT / "generate.py"), "prompt='a dog'"],
}


def seconds(arguments: list[str]) -> float:
    """Of the processor, from the start of Python to its end."""
    with tempfile.TemporaryDirectory() as folder:
        before = os.times()
        # Only commands that stand in this file are run.
        subprocess.run([sys.executable, *arguments], cwd=folder, check=True, capture_output=True)  # noqa: S603
        after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main(rounds: int = 5) -> None:
    """Measure and print."""
    found: dict[str, list[float]] = {name: [] for name in ARMS}
    for _ in range(rounds):
        for name, arguments in ARMS.items():
            found[name].append(seconds(arguments))
    table = Table("process", "least (s)", "median (s)", "ratio of least", title=f"{rounds} rounds")
    least = min(found["bare script"])
    for name, times in found.items():
        table.add_row(name, f"{min(times):.2f}", f"{sorted(times)[rounds // 2]:.2f}", f"{min(times) / least:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
