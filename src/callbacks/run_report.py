"""Write one page with curves, samples, configuration and command at the end of a training."""

import csv
import io
import platform
import shlex
import string
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import lightning as L
import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from src.data.files import save_png
from src.data.images import decode_image
from src.eval.grid import Grid, read_grid
from src.eval.results.report import Report

Curve = tuple[Sequence[float], Sequence[float]]
"""Steps and values of a metric."""
MAX_NAMED = 10
"""Largest number of lines that a legend names."""


def family_of(name: str) -> str:
    """Tell which figure a metric belongs to: ``loss`` of ``train/loss``, ``g`` of ``g/07``."""
    if name.startswith("lr-"):
        return "learning rate"
    return name.removeprefix("train/").removeprefix("val/").rstrip(string.digits).rstrip("/")


def families(curves: Mapping[str, Curve]) -> dict[str, dict[str, Curve]]:
    """Group curves that share a figure: of training and validation, of a number at the end, of all learning rates."""
    found: dict[str, dict[str, Curve]] = {}
    for name, curve in curves.items():
        found.setdefault(family_of(name), {})[name] = curve
    return found


@matplotlib.rc_context({"text.parse_math": False})
def family_figure(family: str, lines: Mapping[str, Curve]) -> Image.Image:
    """Plot a line for each member, from dark to bright; the legend names the first, the last and some between."""
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
    axes = figure.subplots()
    last = len(lines) - 1
    named = {round(index * last / (MAX_NAMED - 1)) for index in range(MAX_NAMED)}
    for index, name in enumerate(sorted(lines, key=lambda name: (len(name), name))):
        x, y = lines[name]
        colour = matplotlib.colormaps["viridis"](0.9 * index / max(last, 1))
        label = _label(name, family) if index in named and last else None
        axes.plot(x, y, color=colour, linewidth=1.2, marker="." if len(x) < 30 else None, label=label)
    axes.set(title=family, xlabel="step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if last:
        figure.legend(loc="outside right center", fontsize="small", frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return decode_image(buffer, "curves")


def _label(name: str, family: str) -> str:
    """What tells a member from the others: ``train``, ``07``, or the group of parameters."""
    first, slash, rest = name.partition("/")
    return (first if rest == family else rest) if slash else name.removeprefix(family)


MACHINE = ("learning rate", "perf/")
"""Beginnings of figures that tell of the machine and the schedule, and are folded away."""
LOSS = "loss"
SCORE = "val/"
"""How the names of scores begin; all but the losses of validation."""
PACKAGES = ("torch", "lightning", "diffusers", "transformers", "hydra-core")
MAX_GRIDS = 12


class RunReport(L.Callback):
    """Writes ``report.html`` into the run folder when training ends: pictures, scores and losses, then the machine.

    Metrics whose names differ by a number at the end share a figure; these figures are in ``curves.png``, too.

    Args:
        run_dir: The run folder; the page shows its ``logs/version_*/metrics.csv``, ``samples/*.png`` and
            ``.hydra/config.yaml``, as far as they exist.
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
        learner = getattr(pl_module, "learner", pl_module)
        title = f"{type(learner).__name__}, {trainer.global_step} steps"
        write_run_report(self.run_dir, title, getattr(learner, "legend", {}))


def write_run_report(run_dir: Path, title: str, legend: Mapping[str, str] | None = None) -> Path:
    """Gather what a run folder holds into ``report.html`` and return its path.

    Args:
        run_dir: The run folder.
        title: Heading of the page.
        legend: What a figure's curves are, by its name.
    """
    report = Report(title)
    _add_pictures(report, run_dir / "samples")
    logs = sorted(run_dir.glob("logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    if logs:
        _add_curves(report, read_curves(logs), run_dir / "curves.png", legend or {})
    report.add_config(_command(), "Command")
    if (run_dir / ".hydra" / "config.yaml").exists():
        report.add_config((run_dir / ".hydra" / "config.yaml").read_text(encoding="utf-8"))
    versions = {package: version(package) for package in PACKAGES}
    report.add_config({"python": platform.python_version(), "machine": platform.machine(), **versions}, "Environment")
    report.write(run_dir / "report.html")
    return run_dir / "report.html"


def _add_pictures(report: Report, folder: Path) -> None:
    """Add the last grid and the photos, and the earlier grids folded away."""
    grids = _evenly_spaced(sorted(folder.glob("step-*.png")))
    for path in grids[-1:]:
        report.add_grid(read_grid(path), _step(path))
    for path in folder.glob("references.png"):
        report.add_grid(read_grid(path), "The photos")
    if grids[:-1]:
        with report.folded("Earlier samples"):
            for path in grids[:-1]:
                report.add_grid(read_grid(path), _step(path))


def _step(path: Path) -> str:
    return f"Step {int(path.stem.removeprefix('step-'))}"


def _add_curves(report: Report, curves: dict[str, Curve], path: Path, legend: Mapping[str, str]) -> None:
    """Add scores, a figure for each family, the important ones open; those with several lines also go to ``path``."""
    scores = {name: values for name, (_, values) in curves.items() if name.startswith(SCORE) and LOSS not in name}
    if scores:
        rows = [[name.removeprefix(SCORE), f"{values[0]:.3f}", f"{values[-1]:.3f}"] for name, values in scores.items()]
        report.add_table(["", "first", "last"], rows, "Scores of the samples")
    found = families(curves)
    figures = {family: family_figure(family, lines) for family, lines in found.items()}
    told = {family: f"{family}: {legend[family]}" for family in figures if family in legend}
    machine = {family: plot for family, plot in figures.items() if family.startswith(MACHINE)}
    open_to = {family for family in figures if family in (LOSS, *legend) or SCORE + family in scores}
    report.add_text("", "Curves")
    report.add_plots({family: figures[family] for family in figures if family in open_to}, told)
    others = {family: figures[family] for family in figures if family not in open_to | machine.keys()}
    for heading, plots in (("More curves", others), ("Learning rates, speed and memory", machine)):
        if plots:
            with report.folded(heading):
                report.add_plots(plots, told)
    several = [figures[family] for family, lines in found.items() if len(lines) > 1]
    if several:
        save_png(Grid(several, 2).picture(), path)


def read_curves(paths: list[Path]) -> dict[str, Curve]:
    """Read every column of CSVLogger files against ``step``, losses first; a resumed part replaces what it repeats."""
    points: dict[str, dict[float, float]] = {}
    for path in paths:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for key, value in row.items():
                    if key not in ("step", "epoch") and value:
                        points.setdefault(key, {})[float(row["step"])] = float(value)
    curves = {key: (sorted(found), [found[step] for step in sorted(found)]) for key, found in points.items()}
    return dict(sorted(curves.items(), key=lambda item: ("loss" not in item[0], item[0])))


def _evenly_spaced(paths: list[Path]) -> list[Path]:
    """Choose at most a dozen paths, evenly spaced, with the first and the last."""
    if len(paths) <= MAX_GRIDS:
        return paths
    return [paths[round(index * (len(paths) - 1) / (MAX_GRIDS - 1))] for index in range(MAX_GRIDS)]


def _command() -> str:
    return shlex.join(["python", *sys.argv])
