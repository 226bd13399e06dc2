"""The manifest of ``world/``: every checkpoint file with its bytes and sha256.

``python -m src.data.world.manifest`` writes ``world/manifest.json``; with ``--check`` it compares instead.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

from src.data.files import write_text
from src.data.schema import SHA256, RefusedFileError, read_json

NAME = "manifest.json"
FORMAT = 1
LARGEST_FILE = 25_000_000
LARGEST_TOTAL = 120_000_000


def world_files(folder: str | Path) -> dict[str, Path]:
    """List every file below ``folder`` by relative POSIX path, sorted.

    The manifest itself, hidden files and prose (``*.md``, which may be corrected) are left out.
    """
    folder = Path(folder)
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    kept = [name for name in paths if name != NAME and not name.endswith(".md")]
    return {name: paths[name] for name in sorted(kept) if not any(part.startswith(".") for part in name.split("/"))}


def describe(path: Path) -> dict[str, int | str]:
    """Return size and checksum of one file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def write_manifest(folder: str | Path) -> Path:
    """Write the manifest of what ``folder`` holds now, and return its path.

    Raises:
        ValueError: If there is nothing to list, or a file or the whole is too large for the repository.
    """
    files = {name: describe(path) for name, path in world_files(folder).items()}
    if not files:
        raise ValueError(f"{folder} holds no files to list")
    _check_sizes(folder, {name: int(entry["bytes"]) for name, entry in files.items()})
    path = Path(folder) / NAME
    write_text(path, json.dumps({"format": FORMAT, "files": files}, indent=1) + "\n")
    return path


def read_manifest(folder: str | Path) -> dict[str, dict[str, int | str]]:
    """Read the entries of ``manifest.json`` by relative path.

    Raises:
        ValueError: If the manifest is missing, damaged or of another format.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        raise ValueError(f"there is no {path}; write it with: python -m src.data.world.manifest {folder}")
    content = read_json(path, "a manifest")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a manifest of format {FORMAT}")
    files = content.get("files")
    if not isinstance(files, dict) or not files or not all(map(_is_entry, files.values())):
        raise RefusedFileError(f"{path} is not a manifest: its files are no mapping of names to bytes and sha256")
    return files


def _is_entry(entry: object) -> bool:
    """Whether an entry says bytes and checksum of a file, and nothing else."""
    if not isinstance(entry, dict) or entry.keys() != {"bytes", "sha256"}:
        return False
    return type(entry["bytes"]) is int and entry["bytes"] >= 0 and not SHA256(str(entry["sha256"]))


def check_manifest(folder: str | Path) -> None:
    """Compare every file of ``folder`` with its manifest.

    Raises:
        ValueError: If a file is missing, changed, not listed or too large; the message names the first.
    """
    listed, present = read_manifest(folder), world_files(folder)
    for name, entry in listed.items():
        if name not in present:
            raise ValueError(f"{folder}/{name} is missing, but the manifest lists it; restore it with: git checkout")
        # The size comes first, because it shows a Git LFS pointer or a cut download without reading 25 MB.
        if present[name].stat().st_size != entry["bytes"] or describe(present[name]) != entry:
            raise ValueError(f"{folder}/{name} is not the file that the manifest lists ({entry['bytes']} bytes)")
    if unlisted := sorted(present.keys() - listed.keys()):
        raise ValueError(
            f"{folder}/{unlisted[0]} is not in the manifest; run: python -m src.data.world.manifest {folder}"
        )
    _check_sizes(folder, {name: int(entry["bytes"]) for name, entry in listed.items()})


def _check_sizes(folder: str | Path, sizes: dict[str, int]) -> None:
    largest = max(sizes, key=lambda name: sizes[name])
    if sizes[largest] > LARGEST_FILE:
        raise ValueError(f"{folder}/{largest} has {sizes[largest]:,} bytes; at most {LARGEST_FILE:,} are allowed")
    if (total := sum(sizes.values())) > LARGEST_TOTAL:
        raise ValueError(f"{folder} has {total:,} bytes in all; at most {LARGEST_TOTAL:,} are allowed")


def main() -> None:
    """Write or check the manifest of a world folder."""
    parser = argparse.ArgumentParser(description="Write or check the manifest of a world folder.")
    parser.add_argument("folder", nargs="?", default="world")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    try:
        if arguments.check:
            check_manifest(arguments.folder)
        else:
            write_manifest(arguments.folder)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{arguments.folder}/{NAME}: {len(read_manifest(arguments.folder))} files")


if __name__ == "__main__":
    main()
