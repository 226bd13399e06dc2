"""Write files whole or not at all, hash tensors, and share tasks among processes."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from filelock import FileLock, Timeout
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to, which replaces ``path`` when the block ends without an error.

    The folder is created if it does not exist. What killed processes left half written in it is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


STALE_SECONDS = 3600
"""A partial file that nobody has written to for so long has no process any more."""


@cache
def _sweep(folder: Path) -> None:
    """Remove stale partial files of a folder, once in each process."""
    for partial in folder.glob(".*.partial"):
        with suppress(OSError):  # Others sweep too, or it is theirs.
            if time.time() - partial.stat().st_mtime > STALE_SECONDS:
                partial.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def free_disk_or_raise(folder: str | Path, needed_bytes: int) -> None:
    """Check that the file system of ``folder`` (which need not exist yet) has room for ``needed_bytes``.

    Raises:
        ValueError: If it has no room.
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


Task = TypeVar("Task")

POLL_SECONDS = 0.2


def take_turns(
    tasks: Sequence[Task], lock_path: Callable[[Task], Path], is_done: Callable[[Task], bool]
) -> Generator[Task, None, None]:
    """Yield each task that is not done while holding its lock; tasks that others hold are tried again at the end.

    The operating system frees the lock of a process that dies, so no task stays locked. A process that fails but goes
    on must close this iterator (``contextlib.closing``), or it would wait for itself.

    Args:
        tasks: Tasks in the order of preference.
        lock_path: Returns the lock file of a task, which is the same in all processes.
        is_done: Tells whether some process has finished a task.
    """
    waiting = list(tasks)
    while waiting:
        left = []
        for task in waiting:
            if is_done(task):
                continue
            path = lock_path(task)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(path, timeout=0):
                    if not is_done(task):
                        yield task
            except Timeout:
                left.append(task)
        waiting = left
        if waiting:
            time.sleep(POLL_SECONDS)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Hash names and contents (hex sha256)."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensor_bytes(tensors[name]))
    return found.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the content in row-major order, whatever the precision, device and strides, for hashes."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def save_png(image: Image.Image, path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write a PNG so that a reader, or a run that is killed, never leaves or sees half a file.

    Args:
        image: What to write.
        path: Target; its folder is made if need be.
        metadata: Text chunks by keyword, read back as ``Image.open(path).text``.
    """
    with whole_file(path) as partial:
        write_png(image, partial, metadata or {})


def write_png(image: Image.Image, path: Path, metadata: dict[str, str]) -> None:
    """Write a PNG with ``metadata`` as text chunks."""
    chunks = PngInfo()
    for key, value in metadata.items():
        chunks.add_text(key, value)
    image.save(path, format="PNG", pnginfo=chunks)
