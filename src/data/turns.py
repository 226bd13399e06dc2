"""Several processes share one list of tasks: each task is done once, and one whose process dies is taken over."""

import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

Task = TypeVar("Task")

POLL_SECONDS = 0.2


def take_turns(
    tasks: Sequence[Task], lock_path: Callable[[Task], Path], is_done: Callable[[Task], bool]
) -> Generator[Task, None, None]:
    """Yield each task that is not done while holding its lock; skip what others hold, and wait for it at the end.

    The operating system frees the lock of a process that dies, so nothing stays claimed. A process that fails and lives
    on must close this iterator (``contextlib.closing``), or it would wait for itself.

    Args:
        tasks: In the order of preference.
        lock_path: A file of its own for each task; equal paths in all processes.
        is_done: Whether somebody has finished it.
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
