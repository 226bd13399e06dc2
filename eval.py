"""Score something: ``python eval.py bank.rex=PATH``, or compare arms: ``python eval.py sweep=NAME``."""

import atexit
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from src.run import cli
from src.run.cli import Sweep, current_sweep, friendly, point
from src.run.targets import build


@friendly
@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
@point
def main(cfg: DictConfig) -> None:
    """Score and show the table; in a sweep, compare what is there so far, and show a line."""
    sweep = current_sweep()
    try:
        score(cfg)
    finally:
        if sweep:
            compare(cfg, sweep)
    if not sweep or cfg.dry_run:
        show(Path(cfg.paths.run_dir))


def compare(cfg: DictConfig, sweep: Sweep) -> None:
    """Put what this start of the sweep has finished side by side, and show the newest line of it."""
    from src.eval.sweeps.comparison import compare_points
    from src.eval.sweeps.points import whole_arms

    if arms := whole_arms(sweep.folder, sweep.started):
        means = compare_points(sweep.folder, cfg.comparison.title, cfg.comparison.published, cfg.seed, sweep.started)
        label = list(arms)[-1]
        line = ", ".join(f"{score} {interval}" for score, interval in means[label].items())
        cli.console.print(f"{label}: {line}", highlight=False)
        # Once, when the last point is done.
        atexit.unregister(show)
        atexit.register(show, sweep.folder)


def score(cfg: DictConfig) -> None:
    """Compose, build, generate and score."""
    # Seconds of imports, which a mistyped key need not wait for.
    from src.callbacks.trackers.loggers import log_config, log_results
    from src.data.files import write_text
    from src.eval.concepts import bank_source, read_concepts
    from src.run.first_looks import look_first
    from src.run.suites import trained

    look_first(cfg, made_later=bool(cfg.get("suite")))
    protocol = build(cfg.protocol)
    suite = build(cfg.get("suite"))
    sources = {
        **(suite.sources() if suite else {}),
        **{name: bank_source(path, name) for name, path in cfg.bank.items()},
    }
    concepts = read_concepts(sources, cfg.references, build(cfg.reference_readers))
    # Before a suite trains for minutes or hours: what could not be scored in the end.
    protocol.check(concepts)
    run_dir = Path(cfg.paths.run_dir)
    if cfg.dry_run:
        write_text(run_dir / "table.md", planned(cfg, protocol, concepts, suite).markdown())
    else:
        if suite:
            use(trained(suite, protocol.requests(concepts)), cfg)
        generator = build(cfg.method)
        loggers = list(build(cfg.get("logger") or {}).values())
        if loggers:
            log_config(loggers, cfg)
        metrics = protocol.run(generator, concepts, run_dir)
        if loggers:
            log_results(loggers, metrics, run_dir, Path(cfg.paths.images_dir), protocol.references(concepts))


def planned(cfg: DictConfig, protocol: Any, concepts: Any, suite: Any) -> Any:
    """Count what is to be trained and drawn, and measure a little of it; what that made is thrown away."""
    from src.eval.draw import measured_plan
    from src.run.rehearsal import rehearsed

    with TemporaryDirectory() as scratch:
        trainings = suite.trainings(protocol.requests(concepts)) if suite else {}
        refuse_joint(trainings)
        rehearsal = rehearsed(list(trainings.values()), Path(scratch) / "training")
        use({key: str(rehearsal.product or one.path) for key, one in trainings.items()}, cfg)
        # Of what is not trained yet there are no images.
        folder = Path(scratch) / "images" if rehearsal.product else cfg.paths.images_dir
        plan = measured_plan(build(cfg.method), protocol.requests(concepts), folder)
    return replace(plan, rows=[*(rehearsal.rows if suite else []), *plan.rows])


def refuse_joint(trainings: Mapping[str, Any]) -> None:
    """Refuse to plan trainings of combinations: what one of them leaves cannot stand for the others."""
    from src.run.suites import JOINED

    for keys in trainings:
        if JOINED in keys:
            subjects = " and ".join(key.partition(".")[2] for key in keys.split(JOINED))
            raise ValueError(
                f"dry_run=true measures no training of several subjects, such as {subjects}; leave it out, or choose a "
                "method that learns them one by one"
            )


def use(made: Mapping[str, str | list[str]], cfg: DictConfig) -> None:
    """Set keys of the configuration to the files that a suite made; what the user gave stays."""
    for key, path in made.items():
        if OmegaConf.select(cfg, key) is None:
            OmegaConf.update(cfg, key, path, force_add=True)


def show(folder: Path) -> None:
    """Print the table, in full where nobody watches, and what else was made."""
    from rich.markdown import Markdown

    cli.console.print(
        Markdown((folder / "table.md").read_text(encoding="utf-8")), width=None if cli.console.is_terminal else 110
    )
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        cli.console.print(path, highlight=False)


if __name__ == "__main__":
    main()
