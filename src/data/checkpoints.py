"""Where runs and their checkpoints are."""

import re
from pathlib import Path

from src.data.commands import override

FOLDER, LAST, BEFORE = "checkpoints", "last.ckpt", ".before"
"""Folder in a run folder, name of the newest checkpoint, and what is added to the name of the one before it."""

STAMP = re.compile(r"^(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)(?:_(\d+))?$")
"""Names of run folders: date, time, and a number among the runs of one second."""


def before(path: Path) -> Path:
    """Return where the checkpoint is that another of the same name replaced."""
    return path.with_name(path.name + BEFORE)


def stored(run_dir: str | Path) -> list[Path]:
    """List the checkpoints of a run, newest first; a kill may have left only the one before the last."""
    last = Path(run_dir) / FOLDER / LAST
    return [path for path in (last, before(last)) if path.exists()]


def newest_run(folder: Path) -> Path:
    """Find the run that was started last; an older one that has a checkpoint is not what is meant.

    Args:
        folder: Holds the runs of one name.

    Raises:
        ValueError: If there is no run, or the newest has no checkpoint.
    """
    runs = sorted((path for path in folder.glob("*") if STAMP.match(path.name)), key=_started)
    if not runs:
        raise ValueError(f"resume=true, but there is no run in {folder}; start without resume=true")
    if not stored(runs[-1]):
        older = [run for run in runs if stored(run)]
        told = override("paths.run_dir", str(older[-1])) if older else ""
        advice = f", or continue an older run with {told} resume=true" if older else ""
        raise ValueError(
            f"resume=true, but the newest run, {runs[-1]}, has no checkpoint yet; start without resume=true{advice}"
        )
    return runs[-1]


def _started(run: Path) -> tuple[str, int]:
    """Second of the start, and the number among the runs of this second."""
    found = STAMP.match(run.name)
    assert found
    return found[1], int(found[2] or 1)
