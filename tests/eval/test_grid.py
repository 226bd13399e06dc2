"""Pictures in rows: every one in its place under its whole caption, and cut out of the PNG again as it was laid in."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.files import save_png
from src.eval.grid import CELLS, Grid, read_captions, read_grid


def test_grid_places_every_image() -> None:
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9), (200, 100, 0)]
    grid = Grid([Image.new("RGB", (400, 200), color) for color in colors], 2).picture()
    assert grid.size == (2 * 408 + 8, 3 * 208 + 8)
    for index, color in enumerate(colors):
        assert grid.getpixel((8 + 200 + 408 * (index % 2), 8 + 100 + 208 * (index // 2))) == color


def test_grid_shows_small_images_larger_with_square_pixels() -> None:
    image = Image.new("RGB", (64, 64), "red")
    image.putpixel((3, 0), (0, 0, 255))
    grid = Grid([image], 1).picture()
    assert grid.size == (64 * 3 + 16, 64 * 3 + 16)
    assert np.array_equal(np.asarray(grid)[8:-8:3, 8:-8:3], np.asarray(image))
    assert np.array_equal(np.asarray(grid)[10:-8:3, 10:-8:3], np.asarray(image))


def test_grid_captions_stay_below_their_image_and_are_whole() -> None:
    images = [Image.new("RGB", (200, 200), "red"), Image.new("RGB", (200, 200), "blue")]
    words = "a fancy photo of a very striped red dog left of an " + "incomprehensibilities" * 3
    captioned, plain = Grid(images, 2, [words, ""]).picture(), Grid(images, 2).picture()
    assert captioned.width == plain.width
    for box in ((8, 8, 208, 208), (216, 8, 416, 208)):
        assert captioned.crop(box).tobytes() == plain.crop(box).tobytes()
    pixels = np.asarray(captioned)
    assert pixels[210:, :208].min() < 128
    assert pixels[210:, 210:].min() == 255
    longer = Grid(images, 2, [f"{words} on the grass, in the snow, at night and in a room", ""]).picture()
    assert longer.height > captioned.height > plain.height, "no caption is cut"


@pytest.mark.parametrize(("count", "columns", "captions"), [(0, 2, []), (2, 0, []), (2, 2, ["one"])])
def test_grid_refuses(count: int, columns: int, captions: list[str]) -> None:
    with pytest.raises(ValueError, match="grid"):
        Grid([Image.new("RGB", (48, 32))] * count, columns, captions)


@pytest.mark.parametrize(("columns", "sides"), [(2, (192, 192)), (3, (64, 48)), (9, (300, 200))])
def test_what_is_read_is_what_was_laid_out(tmp_path: Path, columns: int, sides: tuple[int, int]) -> None:
    images = [Image.effect_noise(sides, spread).convert("RGB") for spread in (20, 40, 60, 80, 100)]
    captions = [f"a <rex> {'on the grass ' * at}| seed {at}" for at in range(5)]
    grid = Grid(images, columns, captions)
    path = tmp_path / "grid.png"
    grid.save(path, {"step": "3"})
    found = read_grid(path)
    assert (found.columns, found.captions) == (min(columns, 5), captions) and read_captions(path) == captions
    factor = found.images[0].width // sides[0]
    for image, cell in zip(images, found.images, strict=True):
        assert np.array_equal(np.asarray(cell)[::factor, ::factor], np.asarray(image))
    assert Image.open(path).text["step"] == "3"


def test_captions_are_read_without_the_pixels(tmp_path: Path) -> None:
    Grid([Image.new("RGB", (64, 64))] * 2, 2).save(tmp_path / "grid.png")
    assert read_captions(tmp_path / "grid.png") == ["", ""]
    content = (tmp_path / "grid.png").read_bytes()
    (tmp_path / "grid.png").write_bytes(content[: content.index(b"IDAT") + 20])
    assert read_captions(tmp_path / "grid.png") == ["", ""]
    with pytest.raises(ValueError, match="cannot read the image"):
        read_grid(tmp_path / "grid.png")


def test_cells_of_another_size_keep_the_white_around_them(tmp_path: Path) -> None:
    Grid([Image.new("RGB", (200, 100), "red"), Image.new("RGB", (100, 200), "blue")], 2).save(tmp_path / "grid.png")
    first, second = read_grid(tmp_path / "grid.png").images
    assert first.size == second.size == (200, 200)
    assert first.getpixel((100, 20)) == second.getpixel((20, 100)) == (255, 255, 255)


LAYOUT = {"number": 1, "columns": 1, "width": 32, "height": 16, "below": 0, "captions": []}
"""Of one cell in a picture of 48 x 32 pixels."""


@pytest.mark.parametrize(
    "told",
    [None, "", "[]", "7", "{", "[" * 100_000, *(
        json.dumps({**LAYOUT, key: value})
        for key, value in {"number": 3, "width": 0, "columns": "1", "more": 1, "captions": 1, "below": 0.5}.items()
    )],
)  # fmt: skip
def test_a_picture_that_tells_no_cells_or_nonsense_is_a_grid_of_itself(tmp_path: Path, told: str | None) -> None:
    picture = Image.effect_noise((48, 32), 50).convert("RGB")
    save_png(picture, tmp_path / "a.png", {} if told is None else {CELLS: told})
    found = read_grid(tmp_path / "a.png")
    assert read_captions(tmp_path / "a.png") == [""]
    assert found.columns == 1 and [image.tobytes() for image in found.images] == [picture.tobytes()]
    save_png(picture, tmp_path / "a.png", {CELLS: json.dumps(LAYOUT)})
    assert read_grid(tmp_path / "a.png").images[0].size == (32, 16)
