"""Regions of concepts: boxes and masks, and what is said of bad ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.layout import covered, layout_key, read_layout, regions_of

HALF = [0.0, 0.0, 0.5, 1.0]


def painted(path: Path, rows: slice, columns: slice, size: tuple[int, int] = (40, 20)) -> str:
    """A black image, white in a part of it; the size is height and width."""
    pixels = np.zeros((*size, 3), dtype=np.uint8)
    pixels[rows, columns] = 255
    Image.fromarray(pixels).save(path)
    return str(path)


def test_a_box_covers_what_lies_inside_of_it() -> None:
    # Columns end at 1/4, 1/2, 3/4, 1; rows at 1/2, 1.
    found = covered((0.125, 0.25, 0.5, 1.0), 2, 4)
    assert torch.allclose(found, torch.tensor([[0.25, 0.5, 0, 0], [0.5, 1, 0, 0]]))
    tiny = (0.4, 0.4, 0.41, 0.42)
    for rows, columns in ((1, 1), (3, 5), (64, 48)):
        assert float(covered(tiny, rows, columns).sum()) / (rows * columns) == pytest.approx(0.01 * 0.02, rel=1e-4)


def test_a_mask_covers_what_is_white_whatever_its_size(tmp_path: Path) -> None:
    path = painted(tmp_path / "mask.png", slice(0, 10), slice(5, 20))
    expected = torch.tensor([[0.5, 1.0], [0, 0]])
    assert torch.allclose(covered(path, 4, 2)[:2], expected)
    assert covered(path, 4, 2)[2:].sum() == 0
    assert covered(path, 80, 40).sum() == 4 * 150


def test_a_layout_is_in_the_order_of_names_and_known_by_what_it_shows(tmp_path: Path) -> None:
    path = painted(tmp_path / "a.png", slice(0, 10), slice(0, 10))
    layout = read_layout({"tom": path, "rex": HALF}, ["rex", "tom", "max"])
    assert layout == (("rex", (0.0, 0.0, 0.5, 1.0)), ("tom", path))
    assert regions_of(layout, ["tom", "max", "rex", "tom"]) == [path, None, (0.0, 0.0, 0.5, 1.0), path]
    same = painted(tmp_path / "b.png", slice(0, 10), slice(0, 10))
    other = painted(tmp_path / "c.png", slice(0, 10), slice(0, 11))
    key = layout_key(layout)
    assert key == layout_key(read_layout({"rex": HALF, "tom": same}, ["rex", "tom"])) and str(tmp_path) not in key
    assert key != layout_key(read_layout({"rex": HALF, "tom": other}, ["rex", "tom"]))
    assert hash(layout) is not None


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"rx": HALF}, "layout.rx names no concept; did you mean layout.rex"),
        ({"zzz": HALF}, "layout.zzz names no concept; the concepts given are: rex, tom"),
        ({"rex": [0, 0, 1.5, 1]}, "leaves the image; give shares from 0 to 1"),
        ({"rex": [-0.1, 0, 1, 1]}, "leaves the image; give shares from 0 to 1"),
        ({"rex": [0, 0, float("nan"), 1]}, "leaves the image; give shares from 0 to 1"),
        ({"rex": [0.5, 0, 0.5, 1]}, "x1 is above x0 and y1 above y0"),
        ({"rex": [0, 0.6, 1, 0.5]}, "x1 is above x0 and y1 above y0"),
        ({"rex": [0, 0, 1]}, r"give \[x0,y0,x1,y1\] as shares"),
        ({"rex": [0, 0, 1, True]}, r"give \[x0,y0,x1,y1\] as shares"),
        ({"rex": "nowhere.png"}, "there is no image file"),
    ],
)
def test_a_bad_region_is_said_in_one_sentence(given: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_layout(given, ["rex", "tom"])


def test_a_black_mask_is_said(tmp_path: Path) -> None:
    path = painted(tmp_path / "black.png", slice(0, 0), slice(0, 0))
    with pytest.raises(ValueError, match="has no white pixel; paint white where the concept should stand"):
        read_layout({"rex": path}, ["rex"])
