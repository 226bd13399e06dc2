"""Draw prompts: ``python generate.py "prompt='a <rex> on the grass'" bank.rex=PATH``, or in a style, or with an LLM."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from src.run import cli
from src.run.cli import friendly, point
from src.run.recall import worth_noting
from src.run.targets import build


@friendly
@hydra.main(version_base="1.3", config_path="conf", config_name="generate")
@point
def main(cfg: DictConfig) -> None:
    """Compose, build, draw what is missing, show where it is."""
    # Seconds of imports, which a mistyped key need not wait for.
    from src.data.files import free_disk_or_raise
    from src.eval.draw import draw_missing, measured_plan, write_grid
    from src.run.drawing import Call

    call, folder = Call.read(cfg), Path(cfg.output)
    requests = call.requests
    # An image is at most what its raw pixels are: 3 MB a megapixel.
    free_disk_or_raise(folder, 2 * 3 * 2**20 * len(requests))
    generator = call.conditioned(build(cfg.method))
    if cfg.dry_run:
        cli.console.print(measured_plan(generator, requests, folder).plain(), highlight=False)
        return
    command = worth_noting(HydraConfig.get().overrides.task)
    paths = draw_missing(generator, requests, folder, command)
    write_grid(paths, requests, cfg.num_images, folder / "grid.png")
    cli.console.print(f"{len(paths)} images: {folder}", highlight=False)
    cli.console.print(f"grid: {folder / 'grid.png'}", highlight=False)


if __name__ == "__main__":
    main()
