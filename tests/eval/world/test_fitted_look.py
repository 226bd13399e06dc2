from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from src.data.world.render import paint_shares, render, shading
from src.data.world.scenes import Placed, Scene, attribute_scene
from src.data.world.vocabulary import COLORS, NOUNS, Look
from src.eval.world.fitted_look import Window, _cost, _layouts, _tensor, fitted_look
from src.eval.world.objects import differs

MARKED = Look("dog", "red", "blue", "striped", "badge", "white")


def scene_of(look, x=0.5, y=0.58, half=0.36, flip=False, background="beach"):
    return Scene((Placed(look, x, y, half, flip),), background, "photo", "")


def read(scene, noun=None):
    image, background = render(scene), render(replace(scene, objects=()))
    rows, columns = (np.flatnonzero(differs(image, background).any(axis)) for axis in (1, 0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return fitted_look(image, background, noun or scene.objects[0].look.noun, box)


def seen(look):
    """Without the colour of a marking that is not there."""
    return look if look.marking else replace(look, marking_color="")


@pytest.mark.parametrize(
    "look",
    [
        MARKED,
        replace(MARKED, color="blue", accent="red"),
        replace(MARKED, pattern="plain"),
        replace(MARKED, pattern="spotted", marking="patch"),
        replace(MARKED, pattern="checkered", marking="collar"),
        replace(MARKED, marking=None),
        Look("car", "white", "black", "plain", None, "red"),
        Look("bird", "yellow", "purple", "spotted", "patch", "green"),
    ],
)
@pytest.mark.parametrize("flip", [False, True])
def test_a_look_is_found_whichever_way_it_faces(look, flip):
    assert seen(read(scene_of(look, flip=flip))) == seen(look)


@pytest.mark.parametrize(("x", "y", "half"), [(0.3, 0.55, 0.2), (0.62, 0.6, 0.28), (0.5, 0.5, 0.45)])
def test_a_look_is_found_wherever_it_stands(x, y, half):
    assert read(scene_of(MARKED, x, y, half)) == MARKED


def test_three_paints_are_three_colours():
    """An object of one colour all over, as no individual is: its main colour is found, and no colour serves twice."""
    image = np.asarray(render(scene_of(MARKED))).copy()
    empty = render(replace(scene_of(MARKED), objects=()))
    image[differs(render(scene_of(MARKED)), empty)] = COLORS["red"]
    found = fitted_look(Image.fromarray(image), empty, "dog", (14, 14, 50, 60))
    assert len({found.color, found.accent, found.marking_color}) == 3


@pytest.mark.parametrize("half", [0.2, 0.36])
def test_the_cost_of_a_window_is_in_shares_of_the_image(half):
    """So that windows of other sizes compare: half the points or twice the picture change it little."""
    scene = scene_of(MARKED, half=half)
    layouts, window = _layouts("dog", marked=False), [Window(0.5, 0.58, half, False)]
    pictures = [_tensor(render(one, 128)) for one in (scene, replace(scene, objects=()))]
    fine, coarse = (float(_cost(*pictures, window, layouts, points)[0].min()) for points in (48, 24))
    assert coarse == pytest.approx(fine, rel=0.2)
    error = float((pictures[0] - pictures[1]).square().sum(0).mean())
    assert -error < fine < -error / 2, "most of what differs from the empty scene, in its own units"


def test_light_from_above_is_no_colour():
    # A white object that is shaded below; no darker paint explains it better.
    bare = Look("house", "white", "black", "plain", None, "red")
    assert seen(read(scene_of(bare, background="forest"))) == seen(bare)


def test_most_held_out_photos_are_read_right():
    scenes = [attribute_scene(10_000_000 + index) for index in range(20)]
    right = [seen(read(scene)) == seen(scene.objects[0].look) for scene in scenes]
    assert sum(right) >= 17


@pytest.mark.parametrize("noun", NOUNS)
def test_paints_make_the_picture(noun):
    """A photo is the background where no paint is, and elsewhere the paints by their shares, shaded."""
    look = replace(MARKED, noun=noun)
    scene = scene_of(look, x=0.5, y=0.5, half=0.5)
    picture, empty = (np.asarray(render(one), float) for one in (scene, replace(scene, objects=())))
    shares, paints = (
        paint_shares(look, 64),
        [COLORS["red"], COLORS["blue"], COLORS["white"], (28, 26, 32), (252, 250, 244)],
    )
    assert shares.sum(0).max() <= 1 + 1e-6
    shaded = np.einsum("ayx,ac,y->yxc", shares, np.array(paints, float), shading(64))
    made = shaded + (1 - shares.sum(0))[..., None] * empty
    # Both round edges in their own way.
    assert np.abs(made - picture).mean() < 4
