"""Pictures in rows, each with its caption: one PNG of all of them, from which they can be cut again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from src.data.files import save_png
from src.data.images import image_size, image_texts, load_image

GAP = 8
READABLE = 192
"""Pixels of the longer side that grids enlarge small images to, as nearly as a whole number allows."""
FONT_SIZE = 13
CELLS = "grid"
"""Text chunk of the PNG that says where its cells are."""


@dataclass(frozen=True)
class Grid:
    """Pictures of any sizes and modes, row by row.

    Attributes:
        images: N of them.
        columns: Images in a row; a shorter row than that is one of all images.
        captions: One for each image, or none at all.

    Raises:
        ValueError: If there is no image, no column, or not one caption per image.
    """

    images: Sequence[Image.Image]
    columns: int
    captions: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be laid out."""
        number = len(self.images)
        if not number or self.columns < 1:
            raise ValueError(f"a grid needs at least one image and one column, got {number} and {self.columns}")
        if self.captions and len(self.captions) != number:
            raise ValueError(f"a grid of {number} images needs as many captions, got {len(self.captions)}")

    def picture(self) -> Image.Image:
        """Lay images out on white, each centred in a cell of the largest size, with its whole caption below.

        Small images are enlarged by a whole number, so that every pixel stays a square.
        """
        return self._laid_out()[0]

    def save(self, path: str | Path, texts: Mapping[str, str] | None = None) -> None:
        """Write the picture as a PNG that says where its cells are.

        Args:
            path: Target; its folder is made if need be.
            texts: Further text chunks by keyword.
        """
        picture, layout = self._laid_out()
        told = json.dumps({**layout._asdict(), "captions": list(self.captions)})
        save_png(picture, path, {**(texts or {}), CELLS: told})

    def _laid_out(self) -> tuple[Image.Image, "_Layout"]:
        shown = [_readable(image) for image in self.images]
        width, height = max(image.width for image in shown), max(image.height for image in shown)
        labels = [_wrap(text, width) for text in self.captions]
        below = max((_text_height(label) for label in labels), default=0)
        layout = _Layout(len(shown), min(self.columns, len(shown)), width, height, below)
        canvas = Image.new("RGB", layout.size, "white")
        draw = ImageDraw.Draw(canvas)
        for index, image in enumerate(shown):
            x, y = layout.place(index)
            canvas.paste(image, (x + (width - image.width) // 2, y + (height - image.height) // 2))
            if labels:
                draw.multiline_text((x, y + height + 2), labels[index], fill="black", font=_font(), spacing=2)
        return canvas, layout


def read_grid(path: str | Path) -> Grid:
    """Cut the picture that ``Grid.save`` wrote into its cells; any other picture is a grid of itself.

    Raises:
        ValueError: If the file is no image, or damaged.
    """
    picture = load_image(path, min_side=1)
    if (found := _found(path, picture.size)) is None:
        return Grid([picture], 1)
    layout, captions = found
    corners = [layout.place(index) for index in range(layout.number)]
    cells = [picture.crop((x, y, x + layout.width, y + layout.height)) for x, y in corners]
    return Grid(cells, layout.columns, captions)


def read_captions(path: str | Path) -> list[str]:
    """Read the caption of each cell that ``read_grid`` would cut, empty where there is none, but no pixels.

    Raises:
        ValueError: If the file is no image.
    """
    found = _found(path, image_size(path, str(path), min_side=1))
    return (found[1] or [""] * found[0].number) if found else [""]


def _found(path: str | Path, size: tuple[int, int]) -> tuple["_Layout", list[str]] | None:
    """Where the cells of a picture are, and their captions; None where it does not say so, or not of itself."""
    try:
        record = json.loads(image_texts(path, CELLS).get(CELLS, ""))
        captions = [str(caption) for caption in record.pop("captions")]
        layout = _Layout(**record)
        whole = all(type(each) is int and each > 0 for each in layout[:4]) and type(layout.below) is int
        if not whole or layout.size != size or len(captions) not in (0, layout.number):
            return None
    # Older pictures say nothing, and others may say anything.
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None
    return layout, captions


class _Layout(NamedTuple):
    """Where cells are, in pixels: their number, columns, size, and the room for captions below each."""

    number: int
    columns: int
    width: int
    height: int
    below: int

    @property
    def size(self) -> tuple[int, int]:
        rows = -(-self.number // self.columns)
        return self.columns * (self.width + GAP) + GAP, rows * (self.height + self.below + GAP) + GAP

    def place(self, index: int) -> tuple[int, int]:
        """Upper left corner of a cell."""
        row, column = divmod(index, self.columns)
        return GAP + column * (self.width + GAP), GAP + row * (self.height + self.below + GAP)


def _readable(image: Image.Image) -> Image.Image:
    factor = max(1, round(READABLE / max(image.size)))
    return image.convert("RGB").resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)


def _wrap(text: str, width: int) -> str:
    """Break a caption into lines of at most ``width`` pixels; a longer word is broken, too."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if _font().getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and _font().getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return "\n".join(lines)


def _text_height(label: str) -> int:
    box = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), label, font=_font(), spacing=2)
    return int(box[3]) + 6
