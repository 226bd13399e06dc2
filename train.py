"""Train something: ``python train.py +experiment=concept_dog``."""

import logging
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from src.cli import console, friendly


@friendly
@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    """Compose, build, fit, export."""
    # Seconds of imports, which a mistyped key need not wait for.
    import lightning as L

    # Its import sets this to INFO: advertisements and a list of devices that are not there.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data = instantiate(cfg.data, _convert_="all")
    module = instantiate(cfg.method, _convert_="all")
    callbacks = list(instantiate(cfg.callbacks, _convert_="all").values())
    trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=instantiate(cfg.logger), _convert_="all")
    console.print(f"run folder: {cfg.paths.run_dir}", highlight=False)
    checkpoint = f"{cfg.paths.run_dir}/checkpoints/last.ckpt" if cfg.resume else None
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    if trainer.is_global_zero:
        made = {name: Path(cfg.paths.run_dir) / name for name in ("samples", "report.html")}
        paths = {name: path for name, path in made.items() if path.exists()}
        for what, path in {**paths, **module.export()}.items():
            console.print(f"{what}: {path}", highlight=False)


if __name__ == "__main__":
    main()
