"""Examine your own checkpoint: ``python doctor.py backbone=sd15 backbone.path=FOLDER``."""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from src.run import cli
from src.run.cli import friendly, point
from src.run.endings import remove_empty
from src.run.start import check_place


@friendly
@hydra.main(version_base="1.3", config_path="conf", config_name="doctor")
@point
def main(cfg: DictConfig) -> None:
    """Look at everything once, write the report, show it, and fail where a check failed."""
    page = Path(cfg.report)
    check_place("the folder of report", page.absolute().parent)
    # Seconds of imports, which a mistyped key need not wait for.
    from src.data.files import write_text
    from src.run.doctor import examined

    found = examined(cfg, HydraConfig.get().runtime.choices["backbone"])
    remove_empty([cfg.paths.run_dir])
    write_text(page, found.markdown())
    cli.console.print(found.markdown(), highlight=False, markup=False)
    cli.console.print(f"report: {page}", highlight=False)
    if found.failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
