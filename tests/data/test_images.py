import io
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin, TiffTags

from src.data.captions.buckets import nearest_bucket
from src.data.files import free_disk_or_raise, save_png
from src.data.images import EXTENSIONS, content_hash, decode_image, find_images, image_size, load_folder, load_image

RED, BLUE = (214, 40, 40), (44, 92, 204)


def picture(width: int = 48, height: int = 32) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def near(image: Image.Image, place: tuple[int, int], color: tuple[int, int, int], tolerance: int) -> bool:
    return bool(np.abs(np.subtract(image.getpixel(place), color)).max() <= tolerance)


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.jpg", {"quality": 95}, 8),
        ("a.JPEG", {"quality": 95}, 8),
        ("a.png", {}, 0),
        ("a.webp", {"lossless": True}, 0),
        ("a.bmp", {}, 0),
        ("a.tiff", {}, 0),
        ("a.tif", {"compression": "tiff_lzw"}, 0),
    ],
)
def test_formats(tmp_path: Path, name: str, options: dict, tolerance: int) -> None:
    picture().save(tmp_path / name, **options)
    (image,) = load_folder(tmp_path)
    assert image.mode == "RGB"
    assert image.size == (48, 32)
    assert near(image, (8, 16), RED, tolerance)
    assert near(image, (40, 16), BLUE, tolerance)


@pytest.mark.parametrize(
    ("mode", "suffix", "expected", "tolerance"),
    [("L", ".png", (92, 92, 92), 1), ("1", ".png", None, 0), ("P", ".png", RED, 51), ("CMYK", ".jpg", RED, 12)],
)
def test_modes_become_rgb(
    tmp_path: Path, mode: str, suffix: str, expected: tuple[int, int, int] | None, tolerance: int
) -> None:
    picture().convert(mode).save(tmp_path / f"a{suffix}")
    image = load_image(tmp_path / f"a{suffix}")
    assert image.mode == "RGB"
    assert expected is None or near(image, (8, 16), expected, tolerance)


def _half_transparent(mode: str) -> Image.Image:
    image = picture().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size).point(lambda v: 255 if v > 127 else 0))
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    _half_transparent(mode).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.getpixel((8, 2)) == (255, 255, 255)
    assert image.getpixel((8, 30)) != (255, 255, 255)


def test_transparent_palette_entry_is_white(tmp_path: Path) -> None:
    image = picture().convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / "a.png", transparency=image.getpixel((8, 16)))
    loaded = load_image(tmp_path / "a.png")
    assert loaded.getpixel((8, 16)) == (255, 255, 255)
    assert near(loaded, (40, 16), BLUE, 2)


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bit_is_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    levels = np.linspace(0, 65535, 48).astype(np.uint16)[None].repeat(32, 0)
    Image.fromarray(levels).save(tmp_path / name)
    values = np.asarray(load_image(tmp_path / name))[0, :, 0]
    np.testing.assert_allclose(values, levels[0] / 257, atol=0.51)


def test_float_image_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((32, 32), dtype=np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match=r"a\.tiff holds floating-point values"):
        load_image(tmp_path / "a.tiff")


def test_exif_rotation_is_applied_once(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned: show rotated by 90 degrees clockwise
    picture().save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = load_image(tmp_path / "a.jpg")
    assert image.size == (32, 48)
    assert near(image, (16, 8), RED, 8)
    assert near(image, (16, 40), BLUE, 8)
    assert image.getexif().get(0x0112) in (None, 1)


def _oriented(kind: str, tag: int, compression: str = "") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = tag
    buffer = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {"compression": compression} if compression else {}
    picture().save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("tag", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 255, 65535])
def test_the_size_of_the_header_is_that_of_the_picture(kind: str, tag: int) -> None:
    content = _oriented(kind, tag)
    image = decode_image(io.BytesIO(content), kind)
    assert image_size(io.BytesIO(content), kind) == image.size == ((32, 48) if 5 <= tag <= 8 else (48, 32))
    assert nearest_bucket(image.size, [(32, 64), (64, 64), (64, 32)]) == ((32, 64) if 5 <= tag <= 8 else (64, 32))
    # The first corner of the file is red; where the tag puts it, by the table of EXIF 2.3.
    x, y = {2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}.get(tag, (0, 0))
    assert near(image, (x * (image.width - 1), y * (image.height - 1)), RED, 20)


@pytest.mark.parametrize("tag", [1, 3, 5, 6, 7, 8])
def test_the_size_of_a_compressed_tiff(tag: int) -> None:
    content = _oriented("TIFF", tag, "tiff_lzw")
    size = decode_image(io.BytesIO(content), "a.tiff").size
    assert image_size(io.BytesIO(content), "a.tiff") == size == ((32, 48) if tag >= 5 else (48, 32))


@pytest.mark.filterwarnings("ignore:Metadata Warning")
@pytest.mark.parametrize("kind", [TiffTags.BYTE, TiffTags.ASCII, TiffTags.SHORT, TiffTags.LONG, TiffTags.RATIONAL])
@pytest.mark.parametrize("value", [(6,), (6, 6), (0,), (77,)])
def test_a_tag_of_the_wrong_type_in_a_tiff(kind: int, value: tuple[int, ...]) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[0x0112] = kind
    tags[0x0112] = "6" * len(value) if kind == TiffTags.ASCII else value
    buffer = io.BytesIO()
    picture().save(buffer, "TIFF", tiffinfo=tags)
    content = buffer.getvalue()
    image = decode_image(io.BytesIO(content), "a.tiff")
    assert image_size(io.BytesIO(content), "a.tiff") == image.size
    assert sorted(image.size) == [32, 48]


def test_a_tiff_that_says_its_orientation_in_xmp_alone() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[700] = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    buffer = io.BytesIO()
    picture().save(buffer, "TIFF", tiffinfo=tags)
    image = decode_image(io.BytesIO(buffer.getvalue()), "a.tiff")
    assert image_size(io.BytesIO(buffer.getvalue()), "a.tiff") == image.size == (32, 48)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0nonsense"])
def test_damaged_exif_does_not_cost_the_photo(tmp_path: Path, exif: bytes) -> None:
    picture().save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert load_image(tmp_path / "a.jpg").size == image_size(tmp_path / "a.jpg", "a.jpg") == (48, 32)


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JFIF"])
def test_jpeg_by_its_other_names(tmp_path: Path, suffix: str) -> None:
    picture().save(tmp_path / f"a{suffix}", format="JPEG")
    assert load_folder(tmp_path)[0].size == (48, 32)


def test_avif(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.avif", quality=95)
    assert near(load_folder(tmp_path)[0], (8, 16), RED, 12)


def test_heic_with_its_extra(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    picture().save(tmp_path / "a.heic", quality=95)
    assert near(load_folder(tmp_path)[0], (8, 16), RED, 16)
    assert image_size(tmp_path / "a.heic", "a.heic") == (48, 32)


def test_what_a_folder_holds_beside_its_images_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture().save(tmp_path / "a.png")
    for name in ("b.raw", "notes.txt", ".hidden"):
        (tmp_path / name).write_text("", encoding="utf-8")
    (tmp_path / "dogs").mkdir()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            find_images(tmp_path)
    (record,) = caplog.records
    assert record.message == f"{tmp_path} holds 1 image; left out: 3 other files: b.raw, dogs/, notes.txt"
    caplog.clear()
    (tmp_path / "b.raw").unlink()
    (tmp_path / "dogs").rmdir()
    find_images(tmp_path, beside=(".txt",))
    assert not caplog.records


@pytest.mark.parametrize("suffix", [".heic", ".heif"])
def test_heic_without_its_extra_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr("src.data.images.EXTENSIONS", (".jpg",))
    (tmp_path / f"b{suffix}").write_text("", encoding="utf-8")
    advice = f"b{suffix}; to read {suffix} run: pip install -e '.[heic]'"
    with pytest.raises(ValueError, match=re.escape(advice)):
        find_images(tmp_path)
    with pytest.raises(ValueError, match=rf"cannot read the image .*; to read {suffix} run: pip install"):
        load_image(tmp_path / f"b{suffix}")
    picture().save(tmp_path / "a.jpg")
    with caplog.at_level(logging.WARNING):
        find_images(tmp_path)
    assert advice in caplog.text


def test_find_images_is_sorted_and_skips_the_rest(tmp_path: Path) -> None:
    for name in ("b.png", "a.PNG", "._a.png", "notes.txt"):
        picture().save(tmp_path / name, format="PNG")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in find_images(tmp_path)] == ["a.PNG", "b.png"]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        find_images(tmp_path / "absent")


def test_file_instead_of_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    with pytest.raises(ValueError, match="is a file; name the folder"):
        find_images(tmp_path / "a.txt")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no images in .*looked for \.jpg, .*the folder is empty"):
        find_images(tmp_path)


def test_folder_of_other_files_lists_them(tmp_path: Path) -> None:
    for name in ("a.txt", "b.mov"):
        (tmp_path / name).write_text("", encoding="utf-8")
    (tmp_path / "dogs").mkdir()
    with pytest.raises(ValueError, match=r"found 3 other files: a\.txt, b\.mov, dogs/") as error:
        find_images(tmp_path)
    assert all(extension in str(error.value) for extension in EXTENSIONS)


def test_long_listings_are_cut(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"found 9 other files: .*4\.txt, and 4 more"):
        find_images(tmp_path)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("not an image", encoding="utf-8")


@pytest.mark.parametrize("damage", [_truncate, _empty, _text])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tiff"])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, damage: Callable[[Path], None]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    picture().save(tmp_path / "good.png")
    Image.fromarray(noise).save(tmp_path / f"holiday{suffix}")
    damage(tmp_path / f"holiday{suffix}")
    with pytest.raises(ValueError, match=f"cannot read the image .*holiday{suffix}: .") as error:
        load_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_every_truncation_is_an_image_or_a_sentence(tmp_path: Path) -> None:
    picture().save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    for length in range(len(data)):
        (tmp_path / "cut.png").write_bytes(data[:length])
        with suppress(ValueError):
            load_image(tmp_path / "cut.png")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no image file"):
        load_image(tmp_path / "a.png")


def test_tiny_image_is_refused_with_its_size(tmp_path: Path) -> None:
    picture(40, 12).save(tmp_path / "icon.png")
    with pytest.raises(ValueError, match=r"icon\.png is 40 x 12 pixels; images need at least 16"):
        load_folder(tmp_path)
    assert load_folder(tmp_path, min_side=12)[0].size == (40, 12)


def test_content_hash_knows_content_and_shape(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    picture().save(tmp_path / "b.bmp")
    first, second = (load_image(tmp_path / name) for name in ("a.png", "b.bmp"))
    assert content_hash(first) == content_hash(second)
    assert len(content_hash(first)) == 64
    second.putpixel((0, 0), (0, 0, 0))
    assert content_hash(first) != content_hash(second)
    assert content_hash(Image.new("RGB", (2, 8))) != content_hash(Image.new("RGB", (4, 4)))


def test_png_carries_metadata_and_leaves_no_partial(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.png"
    save_png(picture(), path, {"prompt": "a <rex> dog", "who": "Zoë 犬"})
    with Image.open(path) as image:
        assert image.text == {"prompt": "a <rex> dog", "who": "Zoë 犬"}
        assert content_hash(image) == content_hash(picture())
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    save_png(picture(), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(OSError, match="mode F"):
        save_png(Image.new("F", (32, 32)), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_disk_check(tmp_path: Path) -> None:
    free_disk_or_raise(tmp_path / "not" / "yet", 1)
    with pytest.raises(ValueError, match=r"needs about 1\.0 TB|needs about .* TB, but only .* are free"):
        free_disk_or_raise(tmp_path / "not" / "yet", 10**18)


def test_real_photos(photos: Path) -> None:
    folders = [folder for folder in sorted(photos.iterdir()) if folder.is_dir()]
    loaded = {folder.name: load_folder(folder) for folder in folders}
    assert loaded
    images = [image for images in loaded.values() for image in images]
    assert all(image.mode == "RGB" and min(image.size) >= 256 for image in images)
    assert len({content_hash(image) for image in images}) == len(images)
