"""Open the mixing desk in a browser: ``python desk.py``, or ``python desk.py backbone=sdxl bank.rex=PATH``."""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from src.run.cli import friendly
from src.run.desk.serve import serve
from src.run.home import expand_home
from src.run.start import check_places


@friendly
@hydra.main(version_base="1.3", config_path="conf", config_name="desk")
def main(cfg: DictConfig) -> None:
    """Serve the page; what the model is, its worker finds out beside it."""
    expand_home(cfg)
    check_places(cfg)
    chosen = HydraConfig.get()
    serve(cfg, chosen.overrides.task, chosen.runtime.choices["backbone"])


if __name__ == "__main__":
    main()
