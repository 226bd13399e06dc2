"""Read a user's images: every file becomes upright RGB, or one sentence says which file cannot be read."""

import hashlib
import logging
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, features
from torch import Tensor

from src.data.color import RefusedError, to_srgb

try:
    from pillow_heif import register_heif_opener
except ImportError:
    _HEIC: tuple[str, ...] = ()
else:
    register_heif_opener()
    _HEIC = (".heic", ".heif")

_AVIF = (".avif",) if features.check("avif") else ()
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"),
    *_AVIF,
    *_HEIC,
)
READABLE_WITH = {
    ".heic": "pip install -e '.[heic]'",
    ".heif": "pip install -e '.[heic]'",
    ".avif": "pip install --upgrade pillow",
}
"""By extension, the command that adds a reader where there is none."""
MASKS = "masks"
"""Folder inside of a folder of photos: for each photo a PNG of the same name, white where the subject stands."""
MIN_SIDE = 16
"""Smallest side in pixels; a smaller file is an icon or a thumbnail that strayed into the folder."""

# Errors that Pillow raises for files that are cut short, empty, of another kind or absurdly large.
PNG_END = b"IEND\xaeB`\x82"
"""Last bytes of every PNG."""
_UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error, Image.DecompressionBombError)

_log = logging.getLogger(__name__)
_told: set[str] = set()


def find_images(folder: str | Path, beside: Collection[str] = (), below: bool = False) -> list[Path]:
    """List the image files in ``folder``, sorted by path. What else is there is said once.

    Args:
        folder: Hidden files and folders in it, and the folder ``masks``, are left out without a word. An image file
            stands for a folder of one.
        beside: Extensions of files that belong to the images, such as ``.json``.
        below: Whether to look into folders of the folder, too.

    Raises:
        ValueError: If the folder does not exist, is another file, or holds no image.
    """
    folder = Path(folder)
    if not folder.exists():
        raise ValueError(f"the image folder {folder} does not exist (looked from {Path.cwd()})")
    if folder.is_file() and folder.suffix.lower() in EXTENSIONS:
        return [folder]
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; name the folder that holds the images, or an image")
    found = [path for path in folder.rglob("*") if path.is_file()] if below else list(folder.iterdir())
    seen = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    images = sorted(path for path in seen if path.suffix.lower() in EXTENSIONS and path.is_file())
    others = sorted({path for path in seen if path.suffix.lower() not in beside and path.name != MASKS} - set(images))
    listed = _listing(folder, others)
    if not images:
        looked = f"no images in {folder}: looked for {', '.join(EXTENSIONS)}"
        raise ValueError(f"{looked}; {f'found {listed}' if others else 'the folder is empty'}")
    if others:
        _say_once(f"{folder} holds {len(images)} image{'s' if len(images) > 1 else ''}; left out: {listed}")
    return images


def _say_once(sentence: str) -> None:
    if sentence not in _told:
        _told.add(sentence)
        _log.warning(sentence)


def _listing(folder: Path, entries: Sequence[Path]) -> str:
    """How many, the first of their names, and how to read those that could be read."""
    names = [f"{path.relative_to(folder)}{'/' if path.is_dir() else ''}" for path in entries]
    more = f", and {len(names) - 5} more" if len(names) > 5 else ""
    kind = "other file" if len(names) == 1 else "other files"
    return f"{len(names)} {kind}: {', '.join(names[:5])}{more}{how_to_read(path.name for path in entries)}"


def how_to_read(names: Iterable[str]) -> str:
    """What to type, if some of these files are images that cannot be read as things are; begins with a semicolon."""
    suffixes = dict.fromkeys(Path(name).suffix.lower() for name in names)
    missing = [one for one in suffixes if one in READABLE_WITH and one not in EXTENSIONS]
    return "".join(f"; to read {one} run: {READABLE_WITH[one]}" for one in missing)


Picture = Image.Image | str | Path | Callable[[], Image.Image]
"""An image, the file that holds one, or what makes one: the last two cost memory only while they are looked at."""


def as_image(picture: Picture) -> Image.Image:
    """The image itself; files are read as by ``load_image``."""
    if isinstance(picture, Image.Image):
        return picture
    return picture() if callable(picture) else load_image(picture)


def load_image(path: str | Path, min_side: int = MIN_SIDE) -> Image.Image:
    """Read one image as upright 8-bit sRGB, on white if it is transparent, the first frame if it is animated.

    Args:
        path: An image file of any kind that Pillow reads.
        min_side: Smallest width and height in pixels.

    Raises:
        ValueError: If the file is missing, unreadable, cut short, too small, or holds values without a known range.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no image file {path}")
    return decode_image(path, str(path), min_side)


def check_png(path: str | Path) -> None:
    """Check every byte of a PNG that we wrote, by the checksums in it; Pillow decodes some damage without a word.

    Raises:
        ValueError: If it is damaged or cut short.
        FileNotFoundError: If there is no such file.
    """
    if not Path(path).read_bytes().endswith(PNG_END):
        raise ValueError(f"{path} is cut short")
    with _opened(path, str(path), 1) as opened:
        opened.verify()


def image_texts(path: str | Path, wanted: str = "") -> dict[str, str]:
    """Read the text chunks of an image; only PNG files have some.

    Args:
        path: The image.
        wanted: A chunk that is enough: where it stands before the pixels, as we write it, these are not read.

    Raises:
        ValueError: As in ``load_image``, as far as was read.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no image file {path}")
    with _opened(path, str(path), 1) as opened:
        if wanted not in opened.info:
            opened.load()
        return {str(key): text for key, text in opened.info.items() if isinstance(text, str)}


def decode_image(file: str | Path | BinaryIO, name: str, min_side: int = MIN_SIDE) -> Image.Image:
    """Read one image from a path or an open file like ``load_image``; ``name`` is its name in errors."""
    with _opened(file, name, min_side) as opened:
        opened.load()
        # Pillow turns a TIFF while it loads, and takes the tag away.
        turn = _turn(opened)
        return to_srgb(opened if turn is None else opened.transpose(turn), name)


def image_size(file: str | Path | BinaryIO, name: str, min_side: int = MIN_SIDE) -> tuple[int, int]:
    """Return width and height of the image that ``decode_image`` reads, from the header alone.

    Raises:
        ValueError: As in ``load_image``, as far as a header tells.
    """
    with _opened(file, name, min_side) as opened:
        width, height = _stored_size(opened)
        return (height, width) if _turn(opened) in SIDEWAYS else (width, height)


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by the tag Orientation of EXIF."""
SIDEWAYS = {TURNS[tag] for tag in (5, 6, 7, 8)}
"""Those that swap width and height."""


def _turn(opened: Image.Image) -> Image.Transpose | None:
    """What makes the image upright; nothing where the tag is missing, damaged or none of the eight."""
    try:
        return TURNS.get(opened.getexif().get(ExifTags.Base.Orientation, 1))
    except _UNREADABLE:
        return None


def _stored_size(opened: Image.Image) -> tuple[int, int]:
    """Width and height before the image is turned: of a TIFF Pillow may have swapped them already."""
    tags = getattr(opened, "tag_v2", None)
    return opened.size if tags is None else (tags[ExifTags.Base.ImageWidth], tags[ExifTags.Base.ImageLength])


@contextmanager
def _opened(file: str | Path | BinaryIO, name: str, min_side: int) -> Iterator[Image.Image]:
    """Open an image; errors that Pillow raises until the block ends become one sentence."""
    try:
        with Image.open(file) as opened:
            # The size is in the header, so a wrong one is refused before pixels are decoded.
            _check_size(name, opened.size, min_side)
            yield opened
    except RefusedError:
        raise
    except _UNREADABLE as error:
        raise ValueError(f"cannot read the image {name}: {_reason(error)}{how_to_read([name])}") from error


def load_folder(folder: str | Path, min_side: int = MIN_SIDE, most: int | None = None) -> list[Image.Image]:
    """Read the images of a folder in the order of ``find_images``.

    Args:
        folder: The folder.
        min_side: Smallest width and height in pixels.
        most: Number of images to read at most; by default all.

    Raises:
        ValueError: As in ``find_images`` and ``load_image``; one bad file is enough, so that none is left out silently.
    """
    return [load_image(path, min_side) for path in find_images(folder)[:most]]


def readable_images(folder: str | Path) -> list[Path]:
    """List the image files of a folder after each was read once; errors as of ``load_folder``."""
    paths = find_images(folder)
    for path in paths:
        load_image(path)
    return paths


def content_hash(image: Image.Image) -> str:
    """Hash size and decoded RGB values (hex sha256), equal for the same picture in two lossless files."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.convert("RGB").tobytes())
    return digest.hexdigest()


def _check_size(path: str | Path, size: tuple[int, int], min_side: int) -> None:
    if min(size) < min_side:
        raise RefusedError(f"{path} is {size[0]} x {size[1]} pixels; images need at least {min_side} on each side")


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is not an image, or it is damaged"
    return str(error) or "it is damaged"


SAME_SHAPE = 0.01
"""Difference of aspect ratios below which there is no warning."""


def fitted(images: Sequence[Image.Image], height: int, width: int) -> Tensor:
    """Resize images to cover the frame (Lanczos) and crop them in the centre: ``(B, 3, H, W)`` in [-1, 1]."""
    for image in images:
        if abs(image.width / image.height - width / height) > SAME_SHAPE:
            _log.warning(
                "an image of %d x %d pixels is cropped in the centre to the shape of %d x %d",
                *image.size,
                width,
                height,
            )
            break
    pixels = np.stack(
        [np.asarray(ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)) for image in images]
    )
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
