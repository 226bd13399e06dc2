"""Read a user's images: every file becomes upright RGB, or one sentence says which file cannot be read."""

import hashlib
import logging
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MIN_SIDE = 16
"""Smallest side in pixels; a smaller file is an icon or a thumbnail that strayed into the folder."""

# Errors that Pillow raises for files that are cut short, empty, of another kind or absurdly large.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def find_images(folder: str | Path) -> list[Path]:
    """List the image files directly in ``folder``, sorted by name; hidden files are left out.

    Raises:
        ValueError: If the folder does not exist, is a file, or holds no image.
    """
    folder = Path(folder)
    if not folder.exists():
        raise ValueError(f"the image folder {folder} does not exist (looked from {Path.cwd()})")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; name the folder that holds the images")
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    images = [path for path in entries if path.suffix.lower() in EXTENSIONS and path.is_file()]
    if not images:
        raise ValueError(f"no images in {folder}: looked for {', '.join(EXTENSIONS)}; {_listing(entries)}")
    return images


def load_image(path: str | Path, min_side: int = MIN_SIDE) -> Image.Image:
    """Read one image as upright 8-bit RGB, on white if it is transparent, the first frame if it is animated.

    Args:
        path: An image file of any kind that Pillow reads.
        min_side: Smallest width and height in pixels.

    Raises:
        ValueError: If the file is missing, unreadable, cut short, too small, or holds values without a known range.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no image file {path}")
    return decode_image(path, str(path), min_side)


def decode_image(file: str | Path | BinaryIO, name: str, min_side: int = MIN_SIDE) -> Image.Image:
    """Read one image from a path or an open file like ``load_image``; ``name`` is its name in errors."""
    with _opened(file, name, min_side) as opened:
        opened.load()
        return _to_rgb(ImageOps.exif_transpose(opened), name)


def image_size(file: str | Path | BinaryIO, name: str, min_side: int = MIN_SIDE) -> tuple[int, int]:
    """Return width and height of the upright image, from the header alone.

    Raises:
        ValueError: As in ``load_image``, as far as a header tells.
    """
    with _opened(file, name, min_side) as opened:
        turned = opened.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return opened.size[::-1] if turned else opened.size


@contextmanager
def _opened(file: str | Path | BinaryIO, name: str, min_side: int) -> Iterator[Image.Image]:
    """Open an image; errors that Pillow raises until the block ends become one sentence."""
    try:
        with Image.open(file) as opened:
            # The size is in the header, so a wrong one is refused before pixels are decoded.
            _check_size(name, opened.size, min_side)
            yield opened
    except _RefusedError:
        raise
    except _UNREADABLE as error:
        raise ValueError(f"cannot read the image {name}: {_reason(error)}") from error


def load_folder(folder: str | Path, min_side: int = MIN_SIDE) -> list[Image.Image]:
    """Read every image of a folder in the order of ``find_images``.

    Raises:
        ValueError: As in ``find_images`` and ``load_image``; one bad file is enough, so that none is left out silently.
    """
    return [load_image(path, min_side) for path in find_images(folder)]


def content_hash(image: Image.Image) -> str:
    """Hash size and decoded RGB values (hex sha256), equal for the same picture in two lossless files."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.convert("RGB").tobytes())
    return digest.hexdigest()


class _RefusedError(ValueError):
    """Says that a file is readable but not accepted; Pillow's own ``ValueError`` means damage."""


def _check_size(path: str | Path, size: tuple[int, int], min_side: int) -> None:
    if min(size) < min_side:
        raise _RefusedError(f"{path} is {size[0]} x {size[1]} pixels; images need at least {min_side} on each side")


def _to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    if image.mode.startswith("I"):
        image = _from_16_bit(image, path)
    if image.mode == "F":
        raise _RefusedError(
            f"{path} holds floating-point values of unknown range; save it with 8 or 16 bits per channel"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image, path: str | Path) -> Image.Image:
    # Pillow's own conversion of these modes to 8 bits clips at 255 instead of scaling.
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise _RefusedError(f"{path} holds values outside 0 ... 65535; save it with 8 or 16 bits per channel")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _listing(entries: list[Path]) -> str:
    if not entries:
        return "the folder is empty"
    names = [f"{path.name}/" if path.is_dir() else path.name for path in entries]
    more = f", and {len(names) - 5} more" if len(names) > 5 else ""
    kind = "other file" if len(names) == 1 else "other files"
    return f"found {len(names)} {kind}: {', '.join(names[:5])}{more}"


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is not an image, or it is damaged"
    return str(error) or "it is damaged"


_log = logging.getLogger(__name__)
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
