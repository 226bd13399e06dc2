from dataclasses import replace

import numpy as np
import pytest

from src.data.world.render import paint_shares, render, shading
from src.data.world.scenes import Placed, Scene, attribute_scene
from src.data.world.vocabulary import COLORS, NOUNS, Look
from src.eval.world.fitted_look import fitted_look
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
