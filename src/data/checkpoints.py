"""Where the checkpoints of a run are."""

from pathlib import Path

FOLDER, LAST, BEFORE = "checkpoints", "last.ckpt", ".before"
"""Folder in a run folder, name of the newest checkpoint, and what is added to the name of the one before it."""


def before(path: Path) -> Path:
    """Return where the checkpoint is that another of the same name replaced."""
    return path.with_name(path.name + BEFORE)


def stored(run_dir: str | Path) -> list[Path]:
    """List the checkpoints of a run, newest first; a kill may have left only the one before the last."""
    last = Path(run_dir) / FOLDER / LAST
    return [path for path in (last, before(last)) if path.exists()]
