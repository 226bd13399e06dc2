"""Score something: ``python eval.py bank.rex=PATH references.rex=FOLDER``."""

from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from src.cli import console, friendly


@friendly
@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
def main(cfg: DictConfig) -> None:
    """Compose, build, generate and score, show the table."""
    from rich.markdown import Markdown

    # Seconds of imports, which a mistyped key need not wait for.
    from src.eval.scored_concept import scored_concepts

    run_dir = Path(cfg.paths.run_dir)
    concepts = scored_concepts(cfg.bank, cfg.references)
    protocol = instantiate(cfg.protocol, _convert_="all")
    generator = instantiate(cfg.generator, _convert_="all")
    protocol.run(generator=generator, concepts=concepts, run_dir=str(run_dir))
    table = Markdown((run_dir / "table.md").read_text())
    console.print(table, width=None if console.is_terminal else 110)
    for path in sorted(path for path in run_dir.iterdir() if path.is_file()):
        console.print(path, highlight=False)


if __name__ == "__main__":
    main()
