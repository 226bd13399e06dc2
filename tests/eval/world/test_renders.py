import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

import src.run.cli  # noqa: F401  (registers the resolvers)
from src.data.request import ImageStyle, Request, TextStyle
from src.data.world.vocabulary import ALL_STYLES, is_held_out
from src.eval.world.renders import Renders, scene_of


def test_a_prompt_is_drawn_as_it_says_in_the_style_of_its_image(root):
    style = ImageStyle(str(root / "world" / "styles" / "stitch.png"))
    scene = scene_of(Request("a cup in the forest, in cross stitch style", 3, style))
    (placed,) = scene.objects
    assert (placed.look.noun, scene.background, scene.style) == ("cup", "forest", "stitch")
    assert is_held_out(placed.look)


def test_without_a_style_it_is_a_photo_and_words_are_a_style():
    prompt = "a cup in the forest, in cross stitch style"
    assert scene_of(Request(prompt, 3)).style == "photo"
    assert scene_of(Request(prompt, 3, TextStyle("cross stitch"))).style == "stitch"


def test_seeds_differ_in_place_and_prompts_in_the_individual():
    asked = [("a cup at night", 0), ("a cup at night", 1), ("a cup in a room", 0)]
    first, second, other = (scene_of(Request(prompt, seed)).objects[0] for prompt, seed in asked)
    assert first.look == second.look and first.x != second.x
    assert first.look != other.look


@pytest.mark.parametrize("prompt", ["a vase at night", "a cup", "a cup and a hat at night"])
def test_what_the_world_cannot_draw_is_refused(prompt):
    with pytest.raises(ValueError, match="one noun and one place"):
        Renders().check([Request(prompt, 0)])


def test_a_style_that_the_world_lacks_is_refused():
    with pytest.raises(ValueError, match="the world has no style 'cubism'"):
        Renders().check([Request("a cup at night", 0, TextStyle("cubism"))])


def test_every_prompt_of_the_study_can_be_drawn_in_every_style(root, tmp_path):
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        cfg = compose("eval", ["sweep=components", "components=renders", f"paths.run_dir={tmp_path}"])
    protocol, renders = (instantiate(one, _convert_="all") for one in (cfg.protocol, cfg.method))
    requests = protocol.requests()
    renders.check(requests)
    styles = [scene_of(request).style for request in requests]
    assert styles.count("photo") == len(requests) / 2 and len(set(styles)) == 11
    image = renders.sample(requests[:1])[0]
    assert isinstance(image, Image.Image) and image.size == (64, 64)
    assert set(styles) <= set(ALL_STYLES)
