"""Processes that work for this one and end with it, however it ends."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import Any, TypeVar

Result = TypeVar("Result")


@contextmanager
def mapped(function: Callable[[Any], Result], jobs: Sequence[Any]) -> Iterator[Iterator[Result]]:
    """Yield the results of ``function`` for all jobs, in their order, from one process for each core.

    After an error in the block no further job is begun. A process whose parent was killed would otherwise wait for the
    next job for ever.
    """
    pool = ProcessPoolExecutor(os.cpu_count(), initializer=_end_with_parent)
    try:
        yield pool.map(function, jobs)
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
