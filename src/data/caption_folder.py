"""Folders of images and captions as everybody has them."""

import json
from pathlib import Path
from typing import BinaryIO

from src.data.caption_sources import clean, named
from src.data.images import EXTENSIONS, find_images

METADATA = "metadata.jsonl"


class CaptionFolder:
    """A folder of images, subfolders included, with captions in ``metadata.jsonl`` or in a ``.txt`` beside each image.

    Args:
        folder: With a ``metadata.jsonl`` as Hugging Face's imagefolder has it, one object with ``file_name`` and the
            caption per line; or without, and then ``dog.jpg`` goes with ``dog.txt``.
        text_column: Name of the caption in ``metadata.jsonl``.

    Raises:
        ValueError: If there is no image, or an image without a caption, or a caption without an image; they are named.
    """

    def __init__(self, folder: str | Path, text_column: str = "text") -> None:
        self.folder = Path(folder)
        images = _images_below(self.folder)
        if not images:
            # Says what is there instead.
            find_images(self.folder)
        metadata = self.folder / METADATA
        listed = metadata.is_file()
        found = _read_metadata(metadata, text_column, images) if listed else _read_beside(images)
        bare = [str(path.relative_to(self.folder)) for path in images if not found.get(path)]
        if bare:
            where = f"{METADATA} has no text for them" if listed else "each needs a .txt of the same name"
            raise ValueError(f"{named(bare, 'image')} in {self.folder} without a caption: {where}")
        self.paths, self.captions = images, [found[path] for path in images]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def name(self, index: int) -> str:
        """The path."""
        return str(self.paths[index])

    def open(self, index: int) -> BinaryIO:
        """The file."""
        return self.paths[index].open("rb")


def _images_below(folder: Path) -> list[Path]:
    """Every image file, sorted; nothing hidden, nothing in hidden folders."""
    below = (path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    seen = (path for path in below if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return sorted(path for path in seen if path.is_file())


def _read_beside(images: list[Path]) -> dict[Path, str]:
    texts = ((path, path.with_suffix(".txt")) for path in images)
    return {path: clean(_read_text(text)) for path, text in texts if text.is_file()}


def _read_metadata(path: Path, text_column: str, images: list[Path]) -> dict[Path, str]:
    captions, known = {}, set(images)
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if line.strip():
            name, text = _read_line(line, text_column, f"{path}, line {number}")
            captions[path.parent / name] = clean(text)
    absent = [str(image) for image in captions if image not in known]
    if absent:
        raise ValueError(f"{path} names {named(absent, 'file')} that the folder does not hold as images")
    return captions


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def _read_line(line: str, text_column: str, where: str) -> tuple[str, str]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    for column in ("file_name", text_column):
        if not isinstance(entry, dict) or not isinstance(entry.get(column), str):
            columns = ", ".join(entry) if isinstance(entry, dict) else "no object"
            raise ValueError(f"{where} has no text {column!r} (it has: {columns}); name the caption with text_column")
    return entry["file_name"], entry[text_column]
