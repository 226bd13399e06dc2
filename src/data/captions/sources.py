"""Sources of images with captions: plain folders, and Hugging Face datasets."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol

from src.data.identity import place_digest
from src.data.images import find_images


class CaptionSource(Protocol):
    """A numbered set of images, each with a caption."""

    captions: Sequence[str]

    def __len__(self) -> int:
        """Number of images."""

    def name(self, index: int) -> str:
        """Return the name of an image for messages."""

    def open(self, index: int) -> BinaryIO:
        """Open the encoded image; the caller closes it."""


def clean(text: str) -> str:
    """Put a caption on one line with single spaces."""
    return " ".join(text.split())


def named(names: list[str], what: str) -> str:
    """Say how many of something there are, and the first of their names."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''} ({', '.join(names[:5])}{more})"


METADATA = "metadata.jsonl"
CAPTIONS = (".txt", ".jsonl")
"""Extensions of the files that hold captions."""


class CaptionFolder:
    """A folder of images, subfolders included, with captions in ``metadata.jsonl`` or in a ``.txt`` beside each image.

    Args:
        folder: Folder of the images. Its ``metadata.jsonl`` is that of Hugging Face's imagefolder, one object with
            ``file_name`` and the caption per line; without it, ``dog.jpg`` goes with ``dog.txt``.
        text_column: Name of the caption in ``metadata.jsonl``.

    Raises:
        ValueError: If there is no image, or an image without a caption, or a caption without an image; they are named.
    """

    incidental: ClassVar[tuple[str, ...]] = ("folder",)

    @staticmethod
    def content(settings: Mapping[str, Any]) -> dict[str, str]:
        """Hash images and captions of the folder that these arguments name."""
        return {"files": place_digest(Path(settings["folder"]).expanduser())}

    def __init__(self, folder: str | Path, text_column: str = "text") -> None:
        self.folder = Path(folder)
        images = find_images(self.folder, CAPTIONS, below=True)
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
        """Return the path."""
        return str(self.paths[index])

    def open(self, index: int) -> BinaryIO:
        """Open the file."""
        return self.paths[index].open("rb")


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


class CaptionDataset:
    """A Hugging Face dataset with a column of images and a column of captions.

    Args:
        path: Folder of ``save_to_disk``, or anything on disk that ``load_dataset`` reads; a name on the hub only with
            ``download``.
        split: Part of the dataset.
        image_column: Name of the images' column.
        text_column: Name of the captions' column.
        name: Configuration of the dataset, if it has several.
        download: Whether it may be fetched from the hub.

    Raises:
            ValueError: If it does not exist, has no such split or column, or lacks captions; the rows are named.
    """

    @staticmethod
    def content(settings: Mapping[str, Any]) -> dict[str, str]:
        """Hash the dataset that these arguments name, if it is on the disk; one of the hub is known by its name."""
        place = Path(settings["path"]).expanduser()
        return {"files": place_digest(place)} if place.exists() else {}

    def __init__(
        self,
        path: str,
        split: str = "train",
        image_column: str = "image",
        text_column: str = "text",
        name: str | None = None,
        download: bool = False,
    ) -> None:
        if not download and not Path(path).exists():
            raise ValueError(f"there is no dataset at {path}; to fetch one of that name from the hub add download=true")
        self.path, self.image_column = path, image_column
        self.rows = _load(path, name, split)
        for column in (image_column, text_column):
            if column not in self.rows.column_names:
                columns = ", ".join(self.rows.column_names)
                raise ValueError(f"the dataset {path} has no column {column!r}; it has: {columns}")
        self.captions = [clean(text) if isinstance(text, str) else "" for text in self.rows[text_column]]
        bare = [f"row {row}" for row, text in enumerate(self.captions) if not text]
        if bare:
            raise ValueError(f"{named(bare, 'image')} of {path} without a caption: {text_column} holds no text there")
        if not len(self):
            raise ValueError(f"the split {split!r} of {path} is empty")
        self.rows = _images_only(self.rows, path, image_column)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def name(self, index: int) -> str:
        """Return dataset and row."""
        return f"{self.path}, row {index}"

    def open(self, index: int) -> BinaryIO:
        """Open the bytes that the table holds, or the file that it names."""
        image = self.rows[index][self.image_column]
        if image is None:
            return io.BytesIO()
        return io.BytesIO(image["bytes"]) if image["bytes"] is not None else open(image["path"], "rb")


def _load(path: str, name: str | None, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError('Hugging Face datasets is not installed; run: pip install -e ".[datasets]"') from error
    folder = Path(path)
    saved = any((folder / marker).is_file() for marker in ("state.json", "dataset_dict.json"))
    loaded = datasets.load_from_disk(path) if saved else datasets.load_dataset(path, name)
    parts = loaded if isinstance(loaded, dict) else {"train": loaded}
    if split not in parts:
        raise ValueError(f"the dataset {path} has no split {split!r}; choose one of: {', '.join(parts)}")
    return parts[split]


def _images_only(rows: Any, path: str, column: str) -> Any:
    """Keep only the column of images, as encoded files instead of pixels."""
    import datasets

    if not isinstance(rows.features[column], datasets.Image):
        raise ValueError(f"the column {column!r} of {path} holds {rows.features[column]}, not images")
    return rows.select_columns(column).cast_column(column, datasets.Image(decode=False))
