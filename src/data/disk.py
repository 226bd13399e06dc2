"""Disk space: asked for before a long run, not missed in the middle of it."""

import shutil
from pathlib import Path

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def free_disk_or_raise(folder: str | Path, needed_bytes: int) -> None:
    """Check that the file system of ``folder`` (which need not exist yet) has room for ``needed_bytes``.

    Raises:
        ValueError: If it has not.
    """
    folder = Path(folder).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise ValueError(
            f"writing to {folder} needs about {_readable(needed_bytes)}, but only {_readable(free)} are free there; "
            "make room or choose another folder"
        )


def _readable(number: int) -> str:
    value, unit = float(number), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"
