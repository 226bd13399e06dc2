import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

import src.run.cli  # noqa: F401  (registers the resolvers)
from src.data.images import readable_images
from src.data.request import ImageStyle, Request, TextStyle
from src.data.world.export import SUBJECTS
from src.data.world.vocabulary import ALL_STYLES, is_held_out, subject
from src.eval.concepts import Concept
from src.eval.protocols.multi_concept import MultiConceptProtocol, listed
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


SIX = ", ".join(["a cup"] * 6)


@pytest.mark.parametrize("prompt", ["a vase at night", "a cup", f"{SIX} at night"])
def test_what_the_world_cannot_draw_is_refused(prompt):
    with pytest.raises(ValueError, match="one to 5 nouns or concepts and one place"):
        Renders().check([Request(prompt, 0)])


def test_other_places_than_columns_and_unknown_subjects_are_refused(root):
    with pytest.raises(ValueError, match="says 'above', but renders stand from left to right: say 'left of'"):
        Renders().check([Request("a cup above a hat at night", 0)])
    for renders, name in ((Renders(), "rex"), (Renders(str(root / "world" / "subjects")), "nobody")):
        with pytest.raises(ValueError, match=f"nobody knows what <{name}> looks like; give method.subjects"):
            renders.check([Request(f"a <{name}> at night", 0)])


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_concepts_are_the_shipped_subjects_each_in_its_column(root, number):
    names = ["rex", "herbie", "pip", "clover", "bolt"][:number]
    prompt = listed("a {} in the snow", number)
    for name in names:
        prompt = prompt.replace("{}", f"<{name}>", 1)
    subjects = str(root / "world" / "subjects")
    for seed in range(6):
        scene = scene_of(Request(prompt, seed), subjects)
        assert [one.look for one in scene.objects] == [subject(SUBJECTS[name][1], SUBJECTS[name][0]) for name in names]
        assert (scene.background, scene.style) == ("snow", "photo")
        for at, one in enumerate(scene.objects):
            assert at / number <= one.x <= (at + 1) / number
            assert number == 1 or one.box[0] >= at / number - 0.05 and one.box[2] <= (at + 1) / number + 0.05
    places = {scene_of(Request(prompt, seed), subjects).objects[0].x for seed in range(6)}
    assert len(places) == 6
    plain = scene_of(Request(listed("a {} in the snow", 3).format("dog", "cat", "dog"), 0))
    assert [one.look.noun for one in plain.objects] == ["dog", "cat", "dog"]
    assert all(is_held_out(one.look) for one in plain.objects) and plain.objects[0].look != plain.objects[2].look


@pytest.mark.parametrize("number", [2, 3])
def test_true_pictures_are_as_asked_and_pictures_of_others_are_not(number, root, tmp_path):
    """By the shipped encoders; of five, who are ten pixels wide, half are."""
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        cfg = compose("eval", ["suite=world", "metrics.judge=null", "paths.run_dir=.", f"paths.cache_dir={tmp_path}"])
        profile = instantiate(cfg.metrics, _convert_="all")
    subjects = root / "world" / "subjects"
    concepts = [
        Concept(name, SUBJECTS[name][0], readable_images(subjects / name), str(subjects / name))
        for name in ("rex", "mittens", "pip")
    ]
    protocol = MultiConceptProtocol(["a {} on the grass"], 2, profile, str(tmp_path), num_concepts=number)
    found = protocol.run(Renders(str(subjects)), concepts, tmp_path)["numbers"][str(number)]
    assert found["concept"]["as_asked"]["mean"] == 1 and found["control"]["as_asked"]["mean"] == 0
    assert found["concept"]["dino"]["mean"] > 0.7 > 0.3 > found["control"]["dino"]["mean"]


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
