"""Whatever mode, depth and profile a file has, its colours are those that a screen shows."""

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from src.data import color
from src.data.images import content_hash, decode_image, load_image
from tests.profiles import grey, ink, lightness, p3

P3, SRGB, OF_GAMMA = (200, 60, 60), (217, 42, 52), (219, 37, 49)
"""One colour by its values in Display P3 and in sRGB; with a gamma of 2.2 the same values are another colour."""


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(color, "_told", set())


def read(image: Image.Image, kind: str, **options) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return decode_image(io.BytesIO(buffer.getvalue()), f"photo.{kind.lower()}")


def is_near(image: Image.Image, expected: tuple[int, int, int], tolerance: int = 1) -> bool:
    return image.mode == "RGB" and np.abs(np.asarray(image, int) - expected).max() <= tolerance


def light(lstar: float, black: float = 0) -> int:
    """The sRGB value of a grey of this L*, where the darkest there is has L* ``black`` and is shown as 0."""
    y, least = (((one + 16) / 116) ** 3 if one > 8 else one / 903.3 for one in (lstar, black))
    y = (y - least) / (1 - least)
    return round(255 * (1.055 * y ** (1 / 2.4) - 0.055 if y > 0.0031308 else 12.92 * y))


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 1),
        ("TIFF", {}, 1),
        ("TIFF", {"compression": "tiff_lzw"}, 1),
        ("WEBP", {"lossless": True}, 1),
        ("JPEG", {"quality": 100, "subsampling": 0}, 3),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}, 3),
    ],
)
def test_display_p3_becomes_srgb_in_every_format(kind: str, options: dict, tolerance: int) -> None:
    image = Image.new("RGB", (32, 24), P3)
    assert is_near(read(image, kind, icc_profile=p3(), **options), SRGB, tolerance)
    assert is_near(read(image, kind, **options), P3, tolerance)


def test_the_curve_of_a_profile_counts_as_well_as_its_primaries() -> None:
    assert is_near(read(Image.new("RGB", (32, 24), P3), "PNG", icc_profile=p3(gamma=2.2)), OF_GAMMA)


def test_what_was_converted_is_not_converted_again(tmp_path: Path) -> None:
    first = read(Image.new("RGB", (32, 24), P3), "PNG", icc_profile=p3())
    first.save(tmp_path / "again.png")
    assert content_hash(load_image(tmp_path / "again.png")) == content_hash(first)


def test_an_srgb_profile_changes_nothing() -> None:
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(np.asarray(read(Image.fromarray(values), "PNG", icc_profile=profile)), values)


def test_a_palette_and_its_transparency() -> None:
    image = Image.new("RGB", (32, 24), P3)
    image.paste((0, 0, 255), (0, 0, 16, 24))
    image = image.convert("P", palette=Image.Palette.ADAPTIVE)
    loaded = read(image, "PNG", icc_profile=p3(), transparency=image.getpixel((4, 4)))
    assert loaded.getpixel((4, 4)) == (255, 255, 255)
    assert is_near(loaded.crop((16, 0, 32, 24)), SRGB)


def test_the_profile_is_applied_before_the_image_is_laid_on_white() -> None:
    loaded = read(Image.new("RGBA", (32, 24), (*P3, 128)), "PNG", icc_profile=p3())
    assert is_near(loaded, tuple(round(255 + (value - 255) * 128 / 255) for value in SRGB))


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_of_8_and_16_bits_with_a_profile_of_grey(mode: str) -> None:
    pixels = np.full((24, 32), 128 * 257, np.uint16)
    image = Image.fromarray(pixels) if mode == "I;16" else Image.new("L", (32, 24), 128).convert(mode)
    linear = light(116 * (128 / 255) ** (1 / 3) - 16)
    assert linear > 180
    assert is_near(read(image, "PNG", icc_profile=grey(1.0)), (linear,) * 3)
    assert is_near(read(image, "PNG"), (128,) * 3)


def test_a_grey_photo_that_kept_the_profile_of_its_colours(caplog: pytest.LogCaptureFixture) -> None:
    image = Image.new("L", (32, 24), 100)
    assert is_near(read(image, "JPEG", icc_profile=p3(), quality=100), (100,) * 3)
    assert not caplog.text


def test_16_bit_colours() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), P3).save(buffer, "PNG", icc_profile=p3())
    assert is_near(decode_image(io.BytesIO(_deep(buffer.getvalue())), "deep.png"), SRGB)


def _deep(png: bytes) -> bytes:
    """The same PNG with 16 bits per channel, which Pillow cannot write."""
    import struct
    import zlib

    rows = zlib.compress((b"\0" + bytes(v for value in P3 for v in (value, value)) * 32) * 24)
    found, at = png[:8], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        name, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        body = body[:8] + b"\x10" + body[9:] if name == b"IHDR" else rows if name == b"IDAT" else body
        found += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        at += 12 + length
    return found


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
@pytest.mark.parametrize("inks", [(0, 0, 0, 0), (255, 255, 255, 0), (0, 0, 0, 255), (255, 0, 0, 0)])
def test_cmyk_by_its_profile(kind: str, inks: tuple[int, ...]) -> None:
    options = {"quality": 100} if kind == "JPEG" else {}
    loaded = read(Image.new("CMYK", (32, 24), inks), kind, icc_profile=ink(), **options)
    expected = light(lightness(*(value / 255 for value in inks)), black=lightness(1, 1, 1, 1))
    assert is_near(loaded, (expected,) * 3, 2)


def test_cmyk_without_a_profile_is_plain() -> None:
    assert is_near(read(Image.new("CMYK", (32, 24), (0, 255, 255, 0)), "TIFF"), (255, 0, 0))


@pytest.mark.parametrize(
    ("mode", "profile", "reason"),
    [
        ("RGB", b"no profile", "cannot open profile"),
        ("RGB", p3()[:200], "."),
        ("RGB", ink(), "it is one of CMYK, and the pixels are RGB"),
        ("CMYK", p3(), "it is one of RGB, and the pixels are CMYK"),
        ("RGB", p3(space=b"GRAY"), "it is one of GRAY, and the pixels are RGB"),
    ],
)
def test_a_useless_profile_is_ignored_and_said_once(
    caplog: pytest.LogCaptureFixture, mode: str, profile: bytes, reason: str
) -> None:
    image = Image.new("RGB", (32, 24), P3).convert(mode)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert is_near(read(image, "TIFF", icc_profile=profile), P3, 2)
    (record,) = caplog.records
    assert "the colour profile of photo.tiff cannot be used" in record.message
    assert reason in record.message
