"""Which files a page may name: those in the folders of the desk, and none beside them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path


class Places:
    """Folders that files may come from; links that lead out of them, and ``..``, do not count as in them.

    Args:
        folders: The folders; those that do not exist yet may be made later.
    """

    def __init__(self, folders: Sequence[str | Path]) -> None:
        self.folders = [Path(folder).expanduser() for folder in folders]

    def holds(self, path: str | Path) -> bool:
        """Tell whether a path, links followed, is in one of the folders."""
        try:
            whole = Path(path).expanduser().resolve()
            return any(whole.is_relative_to(folder.resolve()) for folder in self.folders)
        except (OSError, ValueError, RuntimeError):  # A name with a null byte, or a circle of links.
            return False

    def check(self, key: str, path: str) -> str:
        """Return the path.

        Args:
            key: The setting that names it, for the error.
            path: What it names.

        Raises:
            ValueError: If it is outside of the folders.
        """
        if not self.holds(path):
            shown = path if len(path) <= 80 else f"{path[:77]}..."
            raise ValueError(
                f"{key} is {shown!r}, which is in none of the folders of this desk; start it with "
                "desk.folders=[FOLDER] to use what is in FOLDER"
            )
        return path


def named(path: str | Path) -> str:
    """Name a file for an address, by 16 hexadecimal digits: the address says nothing of where it lies."""
    return hashlib.sha256(str(path).encode("utf-8", "surrogatepass")).hexdigest()[:16]
