"""Train something: ``python train.py +experiment=concept_dog``."""

import hydra
from omegaconf import DictConfig

from src.run import cli
from src.run.cli import friendly, point
from src.run.targets import build
from src.run.training import fit
from src.run.types import check_types


@friendly
@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@point
def main(cfg: DictConfig) -> None:
    """Compose, train, show what was made."""
    cli.console.print(f"run folder: {cfg.paths.run_dir}", highlight=False)
    check_types(cfg)
    search = build(cfg.get("hpo"))
    for what, path in (search.run(cfg) if search else fit(cfg).made).items():
        cli.console.print(f"{what}: {path}", highlight=False)


if __name__ == "__main__":
    main()
