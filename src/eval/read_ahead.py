"""Pictures in batches, the next one being read while the last one is used; never more than two are held."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from PIL import Image

from src.data.images import load_image

BATCH = 64
# Pillow decodes and resizes without Python's lock; more threads than this only hold more memory.
THREADS = min(8, os.cpu_count() or 1)

Picture = Image.Image | str | Path
"""An image, or the file that holds one."""

Result = TypeVar("Result")


def read_ahead(
    function: Callable[[Image.Image], Result], pictures: Iterable[Picture], batch: int = BATCH
) -> Iterator[list[Result]]:
    """What ``function`` makes of each picture, in order and in batches.

    Args:
        function: Called in threads, on upright RGB where the picture is a file.
        pictures: Files are read as ``load_image`` reads them.
        batch: Length of the lists; the last may be shorter.

    Raises:
        ValueError: If a file cannot be read.
    """
    remaining = iter(pictures)
    with ThreadPoolExecutor(THREADS) as pool:

        def start() -> list[Future[Result]]:
            return [pool.submit(_read, function, picture) for picture in islice(remaining, batch)]

        current = start()
        while current:
            coming = start()
            yield [future.result() for future in current]
            current = coming


def _read(function: Callable[[Image.Image], Result], picture: Picture) -> Result:
    return function(picture if isinstance(picture, Image.Image) else load_image(picture))
