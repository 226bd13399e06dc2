"""Views of a subject: what the augmentation does, and what its mask covers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.subject import ConceptData, Zoom


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, size in enumerate([(120, 90), (64, 64), (40, 200)]):
        pixels = np.random.default_rng(index).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return tmp_path


def test_a_small_photo_counts_only_inside() -> None:
    photo = Image.new("RGB", (100, 100), (255, 0, 0))
    seen = set()
    for seed in range(60):
        view = Zoom()(photo, 128, np.random.default_rng(seed))
        assert view.pixels.shape == (128, 128, 3) and view.mask.shape == (16, 16)
        covered = np.kron(view.mask, np.ones((8, 8))).astype(bool)
        assert (view.pixels[covered] == [255, 0, 0]).all()
        seen.add(bool((view.pixels == 127).all(-1).any()))
        assert view.mask.all() or (view.pixels == 127).any()
    assert seen == {True, False}


def test_scales_have_the_published_shares() -> None:
    photo = Image.new("RGB", (100, 100), (255, 0, 0))
    small = [not Zoom()(photo, 64, np.random.default_rng(seed)).mask.all() for seed in range(300)]
    # Two thirds of (0.6 - 1/3) / (1 - 1/3).
    assert np.mean(small) == pytest.approx(2 / 3 * 0.4, abs=0.07)


def test_photos_keep_their_proportions() -> None:
    pixels = np.zeros((60, 180, 3), dtype=np.uint8)
    pixels[::2] = 255
    view = Zoom(min_scale=1.0, flip=False)(Image.fromarray(pixels), 64, np.random.default_rng(0))
    rows = view.pixels.mean((1, 2))
    assert np.abs(np.diff(rows)).max() > 20, "horizontal stripes must survive a crop, not be squashed away"


def test_views_are_a_function_of_the_seed(folder: Path) -> None:
    def pixels(seed: int) -> list[bytes]:
        data = ConceptData(str(folder), "dog", 64, num_views=9, zoom=Zoom(0.6), seed=seed)
        return [view.pixels.tobytes() for view in data.instance_views()]

    assert pixels(0) == pixels(0) != pixels(1)
    assert len(ConceptData(str(folder), "dog", 64).instance_views()) == 3


def test_photos_take_turns(tmp_path: Path) -> None:
    colors = [[250, 0, 0], [0, 250, 0], [0, 0, 250]]
    for index, color in enumerate(colors):
        Image.new("RGB", (64, 64), tuple(color)).save(tmp_path / f"{index}.png")
    views = ConceptData(str(tmp_path), "dog", 64, num_views=6, zoom=Zoom(0.6)).instance_views()
    assert [view.pixels[32, 32].tolist() for view in views] == colors + colors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instance_dir": "/nowhere"}, "/nowhere does not exist"),
        ({"class_noun": ""}, "class_noun is empty"),
        ({"resolution": 100}, "multiple of 8"),
    ],
)
def test_mistakes_are_said_at_once(folder: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConceptData(**({"instance_dir": str(folder), "class_noun": "dog", "resolution": 64} | options))


def test_fewer_class_images_than_asked_for_are_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = ConceptData(str(folder), "dog", class_dir=str(folder), num_class_images=4)
    assert len(data.class_photos or ()) == 3 and f"{folder} holds 3 images, fewer than" in caplog.text
    caplog.clear()
    assert len(ConceptData(str(folder), "dog", class_dir=str(folder), num_class_images=2).class_photos or ()) == 2
    assert not caplog.text
