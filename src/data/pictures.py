"""Write pictures: grids of samples, and PNG files that are never left half-written."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from src.data.files import whole_file

GAP = 4
FONT_SIZE = 10
MAX_LINES = 3


def image_grid(images: Sequence[Image.Image], columns: int, captions: Sequence[str] | None = None) -> Image.Image:
    """Lay images out in rows on white, each centred in a cell of the largest size, with its caption below.

    Args:
        images: Images of any sizes and modes.
        columns: Number of images per row.
        captions: Caption of each image, in small print, cut after three lines.

    Raises:
        ValueError: If there is no image, no column, or not one caption per image.
    """
    if not images or columns < 1:
        raise ValueError(f"a grid needs at least one image and one column, got {len(images)} and {columns}")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"a grid of {len(images)} images needs as many captions, got {len(captions)}")
    columns = min(columns, len(images))
    width, height = max(image.width for image in images), max(image.height for image in images)
    labels = [_wrap(text, width) for text in captions or []]
    below = max((_text_height(label) for label in labels), default=0)
    rows = -(-len(images) // columns)
    size = (columns * (width + GAP) + GAP, rows * (height + below + GAP) + GAP)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for index, image in enumerate(images):
        x = GAP + index % columns * (width + GAP)
        y = GAP + index // columns * (height + below + GAP)
        canvas.paste(image.convert("RGB"), (x + (width - image.width) // 2, y + (height - image.height) // 2))
        if labels:
            draw.multiline_text((x, y + height + 1), labels[index], fill="black", font=_font(), spacing=1)
    return canvas


def save_png_atomic(image: Image.Image, path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write a PNG so that a killed run never leaves, and a reader never sees, half a file.

    Args:
        image: Image to write.
        path: File to write; its folder is created if it does not exist.
        metadata: Text chunks by keyword, read back as ``Image.open(path).text``.
    """
    with whole_file(path) as partial:
        write_png(image, partial, metadata or {})


def write_png(image: Image.Image, path: Path, metadata: dict[str, str]) -> None:
    """Write a PNG with ``metadata`` as text chunks."""
    chunks = PngInfo()
    for key, value in metadata.items():
        chunks.add_text(key, value)
    image.save(path, format="PNG", pnginfo=chunks)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)


def _wrap(text: str, width: int) -> str:
    """Break a caption into lines of at most ``width`` pixels; a longer rest becomes an ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if _font().getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], f"{lines[MAX_LINES - 1]} …"]
    return "\n".join(_cut(line, width) for line in lines)


def _cut(line: str, width: int) -> str:
    # The default font has no ellipsis of its own in every build; three points are safe.
    line = line.replace(" …", "...")
    if _font().getlength(line) <= width:
        return line
    while line and _font().getlength(f"{line}...") > width:
        line = line[:-1]
    return f"{line}..."


def _text_height(label: str) -> int:
    box = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), label, font=_font(), spacing=1)
    return int(box[3]) + 3
