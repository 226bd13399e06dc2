"""How a command ends before it is done: what is kept, and what goes on there."""

import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

INTERRUPTED = 130
"""Exit status of what Ctrl-C ended, as shells have it."""


def stopped(script: str, folder: str) -> str:
    """Say what Ctrl-C leaves, and what goes on there; a training that has begun says so itself.

    Args:
        script: Name of the entry point.
        folder: The run folder, empty before there is one.
    """
    if any(word.startswith(("sweep=", "-m", "--multirun")) for word in sys.argv[1:]):
        return "stopped; what is finished is kept: the same command goes on there"
    if script == "train" and folder and any(Path(folder).glob("checkpoints/*")):
        return "stopped; checkpoints are kept: the same command with resume=true goes on there"
    if script == "train" or not folder:
        return "stopped before the first step; nothing was learnt or drawn"
    key, place = ("output", folder) if script == "generate" else ("paths.images_dir", f"{folder}/images")
    return f"stopped; what is learnt and drawn is kept: the same command with {key}={place} goes on there"


def remove_empty(folders: Iterable[str]) -> None:
    """Remove run folders that hold nothing but the command, and the folders of their name and task if these are empty.

    What ``paths.root`` names stays: it may be the user's own.
    """
    for folder in map(Path, folders):
        if folder.is_dir() and {path.name for path in folder.iterdir()} <= {".hydra", ".lock"}:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # Other runs are there.
                folder.parent.rmdir()
                folder.parent.parent.rmdir()
