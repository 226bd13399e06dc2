"""What a protocol leaves in the run folder: metrics.json, per_image.csv, table.md, picture grids, report.html."""

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from src.data.pictures import save_png_atomic
from src.data.whole_file import write_text
from src.eval.report import Report
from src.eval.tables import write_rows

PACKAGES = ("torch", "open_clip_torch", "timm", "diffusers", "pillow", "numpy")


@dataclass(frozen=True)
class Table:
    """Cells as text, with a title."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """A pipe table under its title."""
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        return f"### {self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

    def plain(self) -> str:
        """Cells in columns, for a terminal."""
        widths = [max(map(len, column)) for column in zip(*self.rows, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in self.rows)
        return "\n".join(line.rstrip() for line in (self.title, *lines))


def provenance() -> dict[str, Any]:
    """What it takes to get the same numbers again: command, commit, package versions."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "git_commit": _git_commit(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def write_results(
    run_dir: str | Path,
    title: str,
    metrics: Mapping[str, Any],
    tables: Sequence[Table],
    rows: Sequence[Mapping[str, Any]],
    grids: Mapping[str, Image.Image],
) -> None:
    """Write everything, each file whole or not at all.

    Args:
        run_dir: The run folder.
        title: Of ``report.html``.
        metrics: Content of ``metrics.json``.
        tables: Content of ``table.md``.
        rows: Lines of ``per_image.csv`` and ``per_image.parquet``, all with the keys of the first.
        grids: File stem to picture.
    """
    folder = Path(run_dir)
    report = Report(title)
    for table in tables:
        report.add_table(table.columns, table.rows, table.title)
    for name, grid in grids.items():
        save_png_atomic(grid, folder / f"{name}.png")
        report.add_image(grid, name)
    report.add_config(
        {key: metrics[key] for key in ("profile", "encoders", "generator", "seed") if key in metrics}, "Profile"
    )
    report.add_config(provenance(), "Provenance")
    report.write(folder / "report.html")
    write_rows(rows, folder / "per_image")
    write_text(folder / "table.md", "\n".join(table.markdown() for table in tables))
    # Last: where metrics.json is, everything is.
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")


def _git_commit() -> str:
    """Hash of the checked-out commit, marked when tracked files differ from it."""
    commands = (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    try:
        runs = [subprocess.run(["git", *rest], capture_output=True, text=True, check=True) for rest in commands]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    commit, changes = (run.stdout.strip() for run in runs)
    return f"{commit}-dirty" if changes else commit
