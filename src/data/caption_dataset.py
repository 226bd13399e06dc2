"""Images and captions of Hugging Face datasets."""

import io
from pathlib import Path
from typing import Any, BinaryIO

from src.data.caption_sources import clean, named


class CaptionDataset:
    """A Hugging Face dataset with a column of images and a column of captions.

    Args:
        path: Folder of ``save_to_disk``, or anything on disk that ``load_dataset`` reads; a name on the hub only with
            ``download``.
        split: Which part of it.
        image_column: Name of the images' column.
        text_column: Name of the captions' column.
        name: Configuration of the dataset, where it has several.
        download: Whether the hub may be asked.

    Raises:
        ValueError: If it is not there, has no such split or column, or captions are missing; the rows are named.
    """

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
        """Dataset and row."""
        return f"{self.path}, row {index}"

    def open(self, index: int) -> BinaryIO:
        """The bytes that the table holds, or the file that it names."""
        image = self.rows[index][self.image_column]
        if image is None:
            return io.BytesIO()
        return io.BytesIO(image["bytes"]) if image["bytes"] is not None else open(image["path"], "rb")


def _load(path: str, name: str | None, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError("Hugging Face datasets is not installed; run: pip install 'atelier[datasets]'") from error
    folder = Path(path)
    saved = any((folder / marker).is_file() for marker in ("state.json", "dataset_dict.json"))
    loaded = datasets.load_from_disk(path) if saved else datasets.load_dataset(path, name)
    parts = loaded if isinstance(loaded, dict) else {"train": loaded}
    if split not in parts:
        raise ValueError(f"the dataset {path} has no split {split!r}; choose one of: {', '.join(parts)}")
    return parts[split]


def _images_only(rows: Any, path: str, column: str) -> Any:
    """The column of images, as files instead of pixels."""
    import datasets

    if not isinstance(rows.features[column], datasets.Image):
        raise ValueError(f"the column {column!r} of {path} holds {rows.features[column]}, not images")
    return rows.select_columns(column).cast_column(column, datasets.Image(decode=False))
