from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from src.data.images import content_hash
from src.data.request import ImageStyle, TextStyle
from src.data.styles import StylePrompt, StyleReference, style_references
from src.data.world.export import STYLE_IMAGES, SUBJECTS, style_scene, write_style_images
from src.data.world.scenes import subject_scene
from src.data.world.tokenizers import words
from src.data.world.vocabulary import BACKGROUNDS, COLORS, HELD_OUT_STYLES, NOUNS, is_held_out


@pytest.mark.parametrize(
    ("prompt", "style", "expected"),
    [
        (StylePrompt("a cat", "Animals"), "watercolor painting", "a cat, animals, in watercolor painting style"),
        (StylePrompt("a cat"), "watercolor painting", "a cat, in watercolor painting style"),
        (StylePrompt("a cat"), "glowing style", "a cat, in glowing style"),
    ],
)
def test_prompts_name_their_style_once(prompt: StylePrompt, style: str, expected: str) -> None:
    assert prompt.styled(style) == expected
    assert prompt.styled(style).startswith(f"{prompt.plain}, in ")


def test_a_folder_of_styles_is_read_with_its_words(tmp_path: Path) -> None:
    write_style_images(tmp_path)
    styles = style_references(tmp_path)
    assert [style.name for style in styles] == sorted(STYLE_IMAGES)
    assert len(styles) == 10
    assert {style.style for style in styles} == set(HELD_OUT_STYLES.values())
    assert all(style.is_image and Path(style.path).is_file() and style.content for style in styles)


@pytest.mark.parametrize("told", [None, "not json", '{"style": "neon"}', '["neon"]'])
def test_a_style_image_without_its_words_is_refused(told: str | None, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "neon.png")
    if told is not None:
        (tmp_path / "neon.json").write_text(told, encoding="utf-8")
    with pytest.raises(ValueError, match=r"neon\.json.*write there what it shows: ..style.: .watercolor painting"):
        style_references(tmp_path)


def test_words_alone_are_a_style() -> None:
    (style,) = style_references(None, ["retro poster"])
    assert style == StyleReference("retro poster", "retro poster", TextStyle("retro poster"))
    assert not style.is_image
    assert style.reference.key() == "text:retro poster"


def test_a_reference_counts_by_its_pixels(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 32), "red")
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.bmp")
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "c.png")
    keys = [ImageStyle(str(tmp_path / name)).key() for name in ("a.png", "b.bmp", "c.png")]
    assert keys[0] == keys[1] == f"image {content_hash(image)}"
    assert keys[2] != keys[0]
    with pytest.raises(ValueError, match="there is no image file"):
        ImageStyle(str(tmp_path / "d.png")).key()


def test_style_images_show_held_out_individuals_in_held_out_styles() -> None:
    named = {subject_scene(index, 0, noun).objects[0].look for noun, index in SUBJECTS.values()}
    for name in STYLE_IMAGES:
        look = style_scene(name).objects[0].look
        assert is_held_out(look) and look not in named
        assert style_scene(name).style in HELD_OUT_STYLES


def test_the_shipped_style_images_are_those_of_the_code(root: Path, tmp_path: Path) -> None:
    for path in write_style_images(tmp_path):
        shipped = root / "world" / "styles" / path.name
        assert Image.open(shipped).tobytes() == Image.open(path).tobytes()
        assert shipped.with_suffix(".json").read_text(encoding="utf-8") == path.with_suffix(".json").read_text(
            encoding="utf-8"
        )


def test_the_forty_prompts_are_of_the_world_and_show_no_style_image(root: Path) -> None:
    prompts = OmegaConf.load(root / "conf" / "protocol" / "style.yaml").prompts
    assert len(prompts) == len(set(prompts)) == 40
    known = set(words())
    assert all(word in known for prompt in prompts for word in prompt.split())
    assert all(any(f" {noun} " in prompt for prompt in prompts) for noun in NOUNS)
    assert all(any(prompt.endswith(place) for prompt in prompts) for place in BACKGROUNDS.values())
    assert not any(color in prompt.split() for prompt in prompts for color in COLORS)
    for style in style_references(root / "world" / "styles"):
        noun, place = style.content.split(" ", 4)[3:]
        assert not [prompt for prompt in prompts if prompt.endswith(f"{noun} {place}")]
