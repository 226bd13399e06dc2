"""Checkpoints that a kill, a full disk or a damaged file cannot take away: whole, with the one before beside them."""

import logging
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from src.data.checkpoints import before, stored
from src.data.files import whole_file

DAMAGE = (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, NotImplementedError)
"""Errors of reading a checkpoint that is cut short, empty or changed; ``OSError`` means disk trouble."""


class WholeCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint beside its target, in the same file system, and keeps the one that it replaces.

    Lightning writes to the temporary folder first; where that is another file system, a kill or a full disk while the
    file is copied leaves it cut short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write to the disk, and only then replace the checkpoint of that name.

        Raises:
            OSError: If it cannot be written; what was there before is still there.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        with whole_file(path) as partial:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                os.replace(path, before(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint and the one that it replaced."""
        super().remove_checkpoint(path)
        if "://" not in str(path):
            before(Path(path)).unlink(missing_ok=True)


def intact(run_dir: str | Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the checkpoints of a run that are whole, newest first; damaged ones are warned of.

    Raises:
        OSError: If the disk cannot be read.
    """
    for path in stored(run_dir):
        found = _read(path)
        if found is None:
            logging.getLogger(__name__).warning("the checkpoint %s is damaged; the one before it is tried", path)
        else:
            yield path, found


def _read(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint whose every byte has the checksum that was written with it; tensors stay on the disk."""
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:
                return None
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except DAMAGE:
        return None
    return found if isinstance(found, dict) else None
