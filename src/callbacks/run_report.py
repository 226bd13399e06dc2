"""At the end of a training: one page with curves, samples, configuration and the command."""

import csv
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import lightning as L
from PIL import Image

from src.eval.report import Report

PACKAGES = ("torch", "lightning", "diffusers", "transformers", "hydra-core")
MAX_GRIDS = 12
Curve = tuple[list[float], list[float]]


class RunReport(L.Callback):
    """Writes ``report.html`` into the run folder when training ends.

    Args:
        run_dir: The run folder; whatever of ``logs/version_*/metrics.csv``, ``samples/*.png`` and
            ``.hydra/config.yaml`` it holds is shown.
    """

    def __init__(self, run_dir: str) -> None:
        self.run_dir = Path(run_dir)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the page, on one process."""
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            # CSVLogger keeps its last lines in memory.
            logger.save()
        write_run_report(self.run_dir, f"{type(pl_module).__name__}, {trainer.global_step} steps")


def write_run_report(run_dir: Path, title: str) -> Path:
    """Gather what a run folder holds into ``report.html`` and return its path."""
    report = Report(title)
    report.add_config(_command(), "Command")
    logs = sorted(run_dir.glob("logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    if logs:
        report.add_curves(read_curves(logs), "Curves")
    pictures = sorted((run_dir / "samples").glob("references.png"))
    pictures += _spread(sorted((run_dir / "samples").glob("step-*.png")))
    if pictures:
        report.add_text("", "Samples")
    for path in pictures:
        with Image.open(path) as image:
            report.add_image(image, path.stem)
    if (run_dir / ".hydra" / "config.yaml").exists():
        report.add_config((run_dir / ".hydra" / "config.yaml").read_text())
    versions = {package: version(package) for package in PACKAGES}
    report.add_config({"python": platform.python_version(), "machine": platform.machine(), **versions}, "Environment")
    report.write(run_dir / "report.html")
    return run_dir / "report.html"


def read_curves(paths: list[Path]) -> dict[str, Curve]:
    """Every column of CSVLogger files against ``step``, losses first; a resumed part replaces what it repeats."""
    points: dict[str, dict[float, float]] = {}
    for path in paths:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for key, value in row.items():
                    if key not in ("step", "epoch") and value:
                        points.setdefault(key, {})[float(row["step"])] = float(value)
    curves = {key: (sorted(found), [found[step] for step in sorted(found)]) for key, found in points.items()}
    return dict(sorted(curves.items(), key=lambda item: ("loss" not in item[0], item[0])))


def _spread(paths: list[Path]) -> list[Path]:
    """At most a dozen, evenly spaced, first and last included."""
    if len(paths) <= MAX_GRIDS:
        return paths
    return [paths[round(index * (len(paths) - 1) / (MAX_GRIDS - 1))] for index in range(MAX_GRIDS)]


def _command() -> str:
    return shlex.join(["python", *sys.argv])
