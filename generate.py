"""Draw prompts that may name concepts: ``python generate.py "prompt='a <rex> on the grass'" bank.rex=PATH``."""

from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig

from src import cli
from src.cli import friendly, point


@friendly
@hydra.main(version_base="1.3", config_path="conf", config_name="generate")
@point
def main(cfg: DictConfig) -> None:
    """Compose, build, draw what is missing, show where it is."""
    # Seconds of imports, which a mistyped key need not wait for.
    from src.data.disk import free_disk_or_raise
    from src.data.request import Request
    from src.eval.dry_run import measured_plan
    from src.eval.manifest import draw_missing, write_grid

    if not cfg.prompt:
        raise ValueError("nothing to draw: give a prompt, such as \"prompt='a <rex> on the grass'\" bank.rex=PATH")
    prompts = list(cfg.prompt) if isinstance(cfg.prompt, ListConfig) else [cfg.prompt]
    unused = [name for name in cfg.bank if not any(f"<{name}>" in prompt for prompt in prompts)]
    if unused:
        raise ValueError(
            f"bank.{unused[0]} is given, but no prompt names it: write <{unused[0]}> where it should stand"
        )
    folder = Path(cfg.output)
    # An image is at most what its raw pixels are: 3 MB a megapixel.
    free_disk_or_raise(folder, 2 * 3 * 2**20 * len(prompts) * cfg.num_images)
    generator = instantiate(cfg.generator, _convert_="all")
    requests = [Request(prompt, cfg.seed + number) for prompt in prompts for number in range(cfg.num_images)]
    if cfg.dry_run:
        cli.console.print(measured_plan(generator, requests, folder).plain(), highlight=False)
        return
    paths = draw_missing(generator, requests, folder)
    write_grid(paths, requests, cfg.num_images, folder / "grid.png")
    cli.console.print(f"{len(paths)} images: {folder}", highlight=False)
    cli.console.print(f"grid: {folder / 'grid.png'}", highlight=False)


if __name__ == "__main__":
    main()
