"""Draw prompts that may name concepts: ``python generate.py "prompt='a <rex> on the grass'" bank.rex=PATH``."""

from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig

from src.cli import console, friendly


@friendly
@hydra.main(version_base="1.3", config_path="conf", config_name="generate")
def main(cfg: DictConfig) -> None:
    """Compose, build, draw what is missing, show where it is."""
    # Seconds of imports, which a mistyped key need not wait for.
    from src.data.request import Request
    from src.eval.manifest import draw_missing, write_grid

    if not cfg.prompt:
        raise ValueError("nothing to draw: give a prompt, such as \"prompt='a <rex> on the grass'\" bank.rex=PATH")
    prompts = list(cfg.prompt) if isinstance(cfg.prompt, ListConfig) else [cfg.prompt]
    generator = instantiate(cfg.generator, _convert_="all")
    requests = [Request(prompt, cfg.seed + number) for prompt in prompts for number in range(cfg.num_images)]
    folder = Path(cfg.output)
    paths = draw_missing(generator, requests, folder)
    write_grid(paths, requests, cfg.num_images, folder / "grid.png")
    console.print(f"{len(paths)} images: {folder}", highlight=False)
    console.print(f"grid: {folder / 'grid.png'}", highlight=False)


if __name__ == "__main__":
    main()
