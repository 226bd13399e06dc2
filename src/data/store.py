"""Caches of files named by what they were made from, which never need to be cleared by hand."""

import logging
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from src.data.files import tensor_bytes, whole_file, write_png
from src.data.finite import check_finite
from src.data.images import check_png, load_image

Value = TypeVar("Value")

CHECKSUM = "crc32"
"""Name of the checksum in the metadata of a file of tensors."""
DAMAGE = (SafetensorError, KeyError, ValueError, EOFError)
"""Errors that readers raise for files that are cut short, empty or of another kind; ``OSError`` means disk trouble."""


def read_or_remove(path: Path, load: Callable[[Path], Value]) -> Value | None:
    """Read a file that can be made anew, or remove it if it is damaged; the process that removes it warns.

    Args:
        path: The file.
        load: Reads the file; it raises one of ``DAMAGE`` for a damaged one.

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

    A key is the path of a file below the folder, without its suffix, and says all that the value depends on. Files are
    written whole, and damaged ones are removed by ``read_or_remove``.

    Args:
        folder: Folder of the files, created with the first one.
        max_gigabytes: Size beyond which the files that were unused for the longest time are removed; None for no limit.

    Raises:
        ValueError: If ``max_gigabytes`` is not positive.
    """

    pattern: str
    """Glob pattern of the store's files below the folder."""

    def __init__(self, folder: str | Path, max_gigabytes: float | None = None) -> None:
        if max_gigabytes is not None and max_gigabytes <= 0:
            raise ValueError(f"the cache in {folder} may take {max_gigabytes} GB; give a positive size")
        self.folder = Path(folder)
        self.max_bytes = None if max_gigabytes is None else int(max_gigabytes * 1e9)
        self._bytes_until_listing = 0

    @abstractmethod
    def load(self, path: Path) -> Value:
        """Read a file; damage raises one of ``DAMAGE``."""

    @abstractmethod
    def save(self, value: Value, path: Path) -> None:
        """Write a file."""

    def path(self, key: str) -> Path:
        """Return the path of a value's file, which may not exist yet."""
        return self.folder / f"{key}{Path(self.pattern).suffix}"

    def __contains__(self, key: str) -> bool:
        """Tell whether there is a file for the key; it may be damaged."""
        return self.path(key).exists()

    def keys(self) -> list[str]:
        """List the keys of all files."""
        paths = self.folder.glob(self.pattern)
        return [path.relative_to(self.folder).with_suffix("").as_posix() for path in paths]

    def get(self, key: str, make: Callable[[], Value]) -> Value:
        """Read the value, or make and write it."""
        value = self.read(key)
        if value is None:
            value = make()
            self.write(key, value)
        return value

    def read(self, key: str) -> Value | None:
        """Read the value; None if it has to be made."""
        path = self.path(key)
        value = read_or_remove(path, self.load)
        if value is not None and self.max_bytes is not None:
            with suppress(OSError):  # Others may have removed it, or own it.
                os.utime(path)
        return value

    def write(self, key: str, value: Value) -> None:
        """Write a value, then make room."""
        path = self.path(key)
        with whole_file(path) as partial:
            self.save(value, partial)
        if self.max_bytes is not None:
            self._bytes_until_listing -= path.stat().st_size
            if self._bytes_until_listing < 0:
                self._make_room(self.max_bytes)

    def _make_room(self, max_bytes: int) -> None:
        """Remove the files that were unused for the longest time.

        Other processes write too, so the folder is listed again whenever a twentieth of its size has been written.
        Between two listings, two processes stay within the tenth that is kept free.
        """
        self._bytes_until_listing = max_bytes // 20
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
        """List last use, bytes and path of every file; other processes may remove some meanwhile."""
        found = []
        for path in self.folder.glob(self.pattern):
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return found


class TensorStore(Store[Tensor]):
    """Stores one tensor in each file, with a checksum; it is read to the CPU.

    Args:
        folder: Folder of the files.
        name: Name of the tensor in its file.
        max_gigabytes: Size limit, see ``Store``.
    """

    pattern = "*.safetensors"

    def __init__(self, folder: str | Path, name: str, max_gigabytes: float | None = None) -> None:
        super().__init__(folder, max_gigabytes)
        self.name = name

    def load(self, path: Path) -> Tensor:
        """Read a tensor."""
        with safe_open(path, "pt") as file:
            checksum, value = (file.metadata() or {}).get(CHECKSUM), file.get_tensor(self.name)
        if checksum != _checksum(value):
            raise ValueError(f"{path} does not have the content that was written")
        check_finite(value, f"the values in {path}")
        return value

    def save(self, value: Tensor, path: Path) -> None:
        """Write a tensor.

        Raises:
            ValueError: If it is not finite.
        """
        check_finite(value, f"the values for {self.folder}")
        value = value.detach().cpu().contiguous()
        save_file({self.name: value}, path, {CHECKSUM: _checksum(value)})


def _checksum(value: Tensor) -> str:
    """CRC-32 of precision, shape and content: it notices damage, and costs less than reading the file."""
    return f"{zlib.crc32(tensor_bytes(value), zlib.crc32(f'{value.dtype} {tuple(value.shape)}'.encode())):08x}"


class ImageStore(Store[Image.Image]):
    """Stores RGB images as PNG files, with the texts in their ``Image.info``."""

    pattern = "*.png"

    def load(self, path: Path) -> Image.Image:
        """Read an image."""
        check_png(path)
        return load_image(path, min_side=1)

    def save(self, value: Image.Image, path: Path) -> None:
        """Write an image."""
        write_png(value, path, {str(key): text for key, text in value.info.items() if isinstance(text, str)})
