"""Train something: ``python train.py +experiment=concept_dog``."""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from src.run import cli
from src.run.cli import friendly, point
from src.run.endings import remove_empty
from src.run.following import without_defaults
from src.run.push import check_push, pushed
from src.run.rehearsal import planned
from src.run.targets import CONF, build
from src.run.training import fit


@friendly
@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@point
def main(cfg: DictConfig) -> None:
    """Compose, train, show what was made."""
    if cfg.get("method") is None:
        raise ValueError(f"nothing to train: add experiment=NAME, one of: {', '.join(experiments())}")
    if cfg.dry_run:
        show_plan(cfg)
        return
    check_push(cfg)
    cli.console.print(f"run folder: {cfg.paths.run_dir}", highlight=False)
    search = build(cfg.get("hpo"))
    fitted = None if search else fit(cfg)
    for what, path in (fitted.made if fitted else search.run(cfg)).items():
        cli.console.print(f"{what}: {without_defaults(path) if what == 'next' else path}", highlight=False)
    if fitted and fitted.made and cfg.push:
        typed = HydraConfig.get().overrides.task
        cli.console.print(f"pushed: {pushed(cfg, fitted.made, fitted.metrics, typed)}", highlight=False)


def show_plan(cfg: DictConfig) -> None:
    """Measure two steps and one picture, and show what the whole training would take and leave."""
    # Seconds of imports, which help need not wait for.
    from src.eval.results.results import Table

    if cfg.get("hpo"):
        raise ValueError("dry_run=true measures one training, not a search; leave hpo out")
    cli.console.print(Table("Dry run", ["", ""], planned(cfg)).plain(), highlight=False)
    remove_empty([cfg.paths.run_dir])


def experiments() -> list[str]:
    """Names of what can be trained, those for evaluations left out."""
    folder = CONF / "experiment"
    trained = [
        path for path in sorted(folder.rglob("*.yaml")) if "train.py +experiment" in path.read_text(encoding="utf-8")
    ]
    return [path.relative_to(folder).with_suffix("").as_posix() for path in trained]


if __name__ == "__main__":
    main()
