"""The colours of an image file as a screen shows them: 8-bit sRGB on white, whatever mode, depth or profile it has."""

import logging
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

SPACES = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}
"""By mode of an opaque image, the colour space of the profiles that belong to it, as ICC.1 spells it."""
OF_THE_FILE = ("icc_profile", "exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp", "transparency")
"""Entries of ``Image.info`` that no longer hold once the pixels are upright sRGB; saving would write some again."""

_log = logging.getLogger(__name__)
_told: set[str] = set()


class RefusedError(ValueError):
    """Says that a file is readable but not accepted; Pillow's own ``ValueError`` means damage."""


def to_srgb(image: Image.Image, name: str) -> Image.Image:
    """Convert an image to 8-bit sRGB, laid on white where it is transparent.

    A colour profile is applied with the perceptual intent. One that is damaged, or that belongs to another kind of
    pixels, is ignored, which is said once; values without a profile are sRGB, grey or plain CMYK.

    Args:
        image: Any mode that Pillow reads, with the ``info`` of its file.
        name: Name of the file in messages.

    Raises:
        RefusedError: If values have no known range.
    """
    profile, info = image.info.get("icc_profile"), image.info
    if image.mode.startswith("I"):
        image = _from_16_bit(image, name)
    if image.mode == "F":
        raise RefusedError(
            f"{name} holds floating-point values of unknown range; save it with 8 or 16 bits per channel"
        )
    transparent = image.convert("RGBA") if image.has_transparency_data else None
    color = _opaque(image, transparent or image)
    color = _profiled(color, profile, name) if profile else color.convert("RGB")
    if transparent is not None:
        color.putalpha(transparent.getchannel("A"))
        color = Image.alpha_composite(Image.new("RGBA", color.size, "white"), color).convert("RGB")
    color.info = {key: value for key, value in info.items() if key not in OF_THE_FILE}
    return color


def _from_16_bit(image: Image.Image, name: str) -> Image.Image:
    # Pillow's own conversion of these modes to 8 bits clips at 255 instead of scaling.
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise RefusedError(f"{name} holds values outside 0 ... 65535; save it with 8 or 16 bits per channel")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _opaque(image: Image.Image, colored: Image.Image) -> Image.Image:
    """Grey, RGB or CMYK without transparency: the modes to which profiles belong."""
    if image.mode in ("1", "L", "LA"):
        return image.convert("L")
    return image if image.mode == "CMYK" else colored.convert("RGB")


def _profiled(image: Image.Image, profile: bytes, name: str) -> Image.Image:
    """Convert from the profile to sRGB; without it where that is impossible."""
    try:
        space = _space(profile)
        # Programs that make a photo grey often leave the profile of its colours in the file.
        source = image.convert("RGB") if (image.mode, space) == ("L", SPACES["RGB"]) else image
        if space != SPACES[source.mode]:
            raise ValueError(f"it is one of {space.strip()}, and the pixels are {source.mode}")
        return _transform(profile, source.mode).apply(source)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        _warn(name, str(error))
        return image.convert("RGB")


def _space(profile: bytes) -> str:
    return ImageCms.getOpenProfile(BytesIO(profile)).profile.xcolor_space


# A folder's photos mostly come from one camera, and preparing a transform costs as much as applying it.
@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    source = ImageCms.getOpenProfile(BytesIO(profile))
    found = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    assert isinstance(found, ImageCms.ImageCmsTransform)
    return found


def _warn(name: str, reason: str) -> None:
    if reason not in _told:
        _told.add(reason)
        _log.warning(
            "the colour profile of %s cannot be used: %s; it is ignored, here and in other files like it", name, reason
        )
