"""Encodings on disk, each text once; the folder stays within its size."""

import hashlib
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.data.whole_file import whole_file
from src.modules.llm.language_model import Identity
from src.modules.llm.options import EncodingOptions


class EncodingCache:
    """One file per text, named by all that its encoding depends on: nothing ever needs to be cleared by hand.

    Several processes may share a folder: files are put in place whole, and one that goes away is encoded again.

    Args:
        folder: Made if need be.
        max_gigabytes: Beyond it, what was unused for the longest time goes.

    Raises:
        ValueError: If ``max_gigabytes`` is not positive.
    """

    def __init__(self, folder: str | Path, max_gigabytes: float = 20.0) -> None:
        if max_gigabytes <= 0:
            raise ValueError(f"the encoding cache may take {max_gigabytes} GB; give a positive size")
        self.folder, self.max_bytes = Path(folder), int(max_gigabytes * 1e9)
        self._unlisted = 0

    def path(self, identity: Identity, options: EncodingOptions, text: str) -> Path:
        """Where the encoding of a text is, or will be."""
        record = json.dumps([asdict(identity), asdict(options), text], sort_keys=True)
        key = hashlib.sha256(record.encode()).hexdigest()
        return self.folder / key[:2] / f"{key[2:34]}.safetensors"

    def read(self, path: Path) -> Tensor | None:
        """States ``(K, L, D)``, or None if they are not there; a damaged file is removed."""
        try:
            states = load_file(path)["states"]
            os.utime(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError, OSError):
            logging.getLogger(__name__).warning("%s is damaged; its text is encoded again", path)
            path.unlink(missing_ok=True)
            return None
        return states

    def write(self, path: Path, states: Tensor) -> None:
        """Keep states ``(K, L, D)``, without padding; then make room."""
        with whole_file(path) as partial:
            save_file({"states": states.cpu().contiguous()}, partial)
        self._unlisted -= path.stat().st_size
        if self._unlisted < 0:
            self._make_room()

    def _files(self) -> list[tuple[float, int, Path]]:
        """Last use, bytes and path of every file; other processes may remove some meanwhile."""
        found = []
        for path in self.folder.glob("??/*.safetensors"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((status.st_mtime, status.st_size, path))
        return found

    def _make_room(self) -> None:
        """Remove the oldest files.

        Other processes write too, so the folder is listed again after every twentieth of its size; between two
        listings, two processes stay within the tenth that is kept free.
        """
        self._unlisted = self.max_bytes // 20
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        if total <= 0.9 * self.max_bytes:
            return
        for _, size, path in files:
            if total <= 0.8 * self.max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
