"""Files named by what their content was made from: found again or made anew, and never to be cleared by hand."""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.data.files import whole_file, write_png
from src.data.images import load_image

Value = TypeVar("Value")

DAMAGE = (SafetensorError, KeyError, ValueError, EOFError)
"""What readers raise for files that are cut short, empty or of another kind; an ``OSError`` is trouble of the disk."""


def read_or_remove(path: Path, load: Callable[[Path], Value]) -> Value | None:
    """Read a file that can be made anew: the one answer to damage.

    A damaged file is removed and named in one warning, by whoever removed it.

    Args:
        path: The file.
        load: It raises one of ``DAMAGE`` for a damaged file.

    Returns:
        What ``load`` read, or None if there is no file any more.
    """
    try:
        return load(path)
    except FileNotFoundError:
        return None
    except DAMAGE:
        with suppress(FileNotFoundError):
            path.unlink()
            logging.getLogger(__name__).warning("%s is damaged; it was removed and is made anew", path)
        return None


class Store(ABC, Generic[Value]):
    """Values by key, one file each; several processes may read and write at once.

    A key says all that its value depends on. It is the path of the file below the folder, without the suffix. Files are
    put in place whole, and ``read_or_remove`` is the answer to a damaged one.

    Args:
        folder: It is made when something is written.
        max_gigabytes: Beyond it, what was unused for the longest time goes; None for no bound.

    Raises:
        ValueError: If ``max_gigabytes`` is not positive.
    """

    pattern: str
    """Matches the files below the folder; whatever else lies there is not the store's."""

    def __init__(self, folder: str | Path, max_gigabytes: float | None = None) -> None:
        if max_gigabytes is not None and max_gigabytes <= 0:
            raise ValueError(f"the cache in {folder} may take {max_gigabytes} GB; give a positive size")
        self.folder = Path(folder)
        self.max_bytes = None if max_gigabytes is None else int(max_gigabytes * 1e9)
        self._unlisted = 0

    @abstractmethod
    def load(self, path: Path) -> Value:
        """Read a file; damage raises one of ``DAMAGE``."""

    @abstractmethod
    def save(self, value: Value, path: Path) -> None:
        """Write a file."""

    def path(self, key: str) -> Path:
        """Where a value is, or will be."""
        return self.folder / f"{key}{Path(self.pattern).suffix}"

    def __contains__(self, key: str) -> bool:
        """Whether there is a file, which may be damaged."""
        return self.path(key).exists()

    def keys(self) -> list[str]:
        """Keys of all files that are there."""
        paths = self.folder.glob(self.pattern)
        return [path.relative_to(self.folder).with_suffix("").as_posix() for path in paths]

    def get(self, key: str, make: Callable[[], Value]) -> Value:
        """The value, made and kept if it is not there."""
        value = self.read(key)
        if value is None:
            value = make()
            self.write(key, value)
        return value

    def read(self, key: str) -> Value | None:
        """The value, or None if it has to be made."""
        path = self.path(key)
        value = read_or_remove(path, self.load)
        if value is not None and self.max_bytes is not None:
            with suppress(OSError):  # Others may have removed it, or own it.
                os.utime(path)
        return value

    def write(self, key: str, value: Value) -> None:
        """Keep a value; then make room."""
        path = self.path(key)
        with whole_file(path) as partial:
            self.save(value, partial)
        if self.max_bytes is not None:
            self._unlisted -= path.stat().st_size
            if self._unlisted < 0:
                self._make_room(self.max_bytes)

    def _make_room(self, max_bytes: int) -> None:
        """Remove the files that were unused for the longest time.

        Other processes write too, so the folder is listed again after every twentieth of its size; between two
        listings, two processes stay within the tenth that is kept free.
        """
        self._unlisted = max_bytes // 20
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        if total <= 0.9 * max_bytes:
            return
        for _, size, path in files:
            if total <= 0.8 * max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size

    def _files(self) -> list[tuple[float, int, Path]]:
        """Last use, bytes and path of every file; other processes may remove some meanwhile."""
        found = []
        for path in self.folder.glob(self.pattern):
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return found


class TensorStore(Store[Tensor]):
    """One tensor a file, on the CPU.

    Args:
        folder: See ``Store``.
        name: What the tensor is called in its file.
        max_gigabytes: See ``Store``.
    """

    pattern = "*.safetensors"

    def __init__(self, folder: str | Path, name: str, max_gigabytes: float | None = None) -> None:
        super().__init__(folder, max_gigabytes)
        self.name = name

    def load(self, path: Path) -> Tensor:
        """Read a tensor."""
        return load_file(path)[self.name]

    def save(self, value: Tensor, path: Path) -> None:
        """Write a tensor."""
        save_file({self.name: value.cpu().contiguous()}, path)


class ImageStore(Store[Image.Image]):
    """PNG files of RGB images; the texts in ``Image.info`` are kept with them."""

    pattern = "*.png"

    def load(self, path: Path) -> Image.Image:
        """Read an image."""
        return load_image(path, min_side=1)

    def save(self, value: Image.Image, path: Path) -> None:
        """Write an image."""
        write_png(value, path, {str(key): text for key, text in value.info.items() if isinstance(text, str)})
