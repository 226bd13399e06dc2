"""Cut-outs of subjects and canvases of several: nothing overlaps, and what is not the subject is left out."""

import numpy as np
import pytest
from PIL import Image

from src.data.seg_mix import LARGEST, SMALLEST, cut_outs, mixed, places


def photo(folder, name="a.png", size=(32, 24)):
    """A red photo with a green box from (8, 4) to (20, 16), and its mask."""
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    picture, mask = Image.new("RGB", size, (255, 0, 0)), Image.new("L", size, 0)
    picture.paste((0, 255, 0), (8, 4, 20, 16))
    mask.paste(255, (8, 4, 20, 16))
    picture.save(folder / name)
    mask.save(folder / "masks" / name)


def test_a_cut_out_is_the_subject_alone(tmp_path):
    photo(tmp_path)
    (cut,) = cut_outs(tmp_path)
    assert cut.mode == "RGBA" and cut.size == (12, 12)
    assert (np.asarray(cut) == (0, 255, 0, 255)).all()


def test_boxes_never_overlap_and_keep_their_shape_and_scale():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        found = places([(10, 10), (20, 10), (10, 20)], 64, rng)
        cells = np.zeros((64, 64), dtype=int)
        for left, top, right, bottom in found:
            assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
            cells[top:bottom, left:right] += 1
        assert cells.max() == 1
        wide, tall = found[1], found[2]
        assert abs((wide[2] - wide[0]) - 2 * (wide[3] - wide[1])) <= 2
        assert abs(2 * (tall[2] - tall[0]) - (tall[3] - tall[1])) <= 2
    sides = [
        max(right - left, bottom - top)
        for seed in range(60)
        for left, top, right, bottom in places([(1, 1)], 100, np.random.default_rng(seed))
    ]
    assert min(sides) >= 100 * SMALLEST - 1 and max(sides) <= 100 * LARGEST + 1 and max(sides) - min(sides) > 20
    # Eight of them find room only when they shrink.
    assert len(places([(1, 1)] * 8, 64, np.random.default_rng(0))) == 8


def test_a_canvas_shows_every_subject_on_white(tmp_path):
    green = Image.new("RGBA", (8, 8), (0, 255, 0, 255))
    blue = Image.new("RGBA", (8, 8), (0, 0, 255, 255))
    pixels, shown = mixed([green, blue], 64, np.random.default_rng(1), ordered=True)
    is_green, is_blue, is_white = ((pixels == color).all(2) for color in ((0, 255, 0), (0, 0, 255), (255, 255, 255)))
    assert is_green.any() and is_blue.any() and (is_green | is_blue | is_white).all()
    assert (shown == (is_green | is_blue)).all()
    assert is_green.nonzero()[1].min() < is_blue.nonzero()[1].min()
    half = green.copy()
    half.paste((255, 0, 0, 0), (0, 0, 4, 8))
    assert mixed([half], 64, np.random.default_rng(1))[0][..., 1].min() > 200
    drawn = [mixed([green, blue], 64, np.random.default_rng(seed))[0] for seed in (1, 1, 2)]
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()


def test_photos_without_a_usable_mask_are_refused_in_a_sentence(tmp_path):
    photo(tmp_path)
    mask = tmp_path / "masks" / "a.png"
    Image.new("L", (32, 24), 0).save(mask)
    with pytest.raises(ValueError, match=r"a\.png has no white pixel; paint white where the subject stands"):
        cut_outs(tmp_path)
    Image.new("L", (16, 16), 255).save(mask)
    with pytest.raises(ValueError, match=r"is \(16, 16\), but its photo is \(32, 24\)"):
        cut_outs(tmp_path)
    mask.unlink()
    with pytest.raises(ValueError, match=r"a\.png has no mask, by which its subject is cut out; paint one"):
        cut_outs(tmp_path)


def test_masks_beside_photos_are_no_other_files(tmp_path, caplog):
    photo(tmp_path)
    cut_outs(tmp_path)
    assert not caplog.records
