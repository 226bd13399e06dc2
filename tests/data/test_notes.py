"""What a picture says of how it was drawn."""

import json
from pathlib import Path

import pytest
from PIL import Image

from src.data.files import save_png
from src.data.notes import ATELIER, PARAMETERS, Note, chunks, read_note
from src.data.request import ImageStyle, Request, TextStyle

SAMPLING = {"num_inference_steps": 25, "guidance_scale": 3.0, "negative_prompt": "fog", "resolution": None}


def saved(folder: Path, request: Request, **more: object) -> str:
    path = folder / "image.png"
    given = {"drawn_with": {"backbone": "f00"}, "sampling": SAMPLING, "command": ["bank.rex=a.safetensors"], **more}
    save_png(Image.new("RGB", (64, 32)), path, chunks(request, (64, 32), **given))
    return str(path)


def test_viewers_find_prompt_and_settings_where_they_look(tmp_path: Path) -> None:
    """Three lines: prompt, negative prompt, and settings with commas between them."""
    text = Image.open(saved(tmp_path, Request("a <rex>\u2026", 7))).text
    prompt, negative, settings = text[PARAMETERS].split("\n")
    assert (prompt, negative) == ("a <rex>\u2026", "Negative prompt: fog")
    told = dict(each.split(": ") for each in settings.split(", "))
    assert told.pop("Version").startswith("Atelier")
    assert told == {"Steps": "25", "CFG scale": "3.0", "Seed": "7", "Size": "64x32"}
    assert set(text) == {PARAMETERS, ATELIER}, "ComfyUI reads a chunk named prompt as its own"


def test_a_method_without_settings_of_a_call_still_says_its_seed(tmp_path: Path) -> None:
    text = Image.open(saved(tmp_path, Request("a dog", 7), sampling={})).text
    assert text[PARAMETERS].startswith("a dog\nSeed: 7, Size: 64x32, Version: ")


@pytest.mark.parametrize("style", [None, ImageStyle("a b.png"), TextStyle("neon")])
def test_a_note_comes_back_whole(tmp_path: Path, style: ImageStyle | TextStyle | None) -> None:
    told = {None: {}, ImageStyle("a b.png"): {"style": "a b.png"}, TextStyle("neon"): {"style_prompt": "neon"}}[style]
    note = read_note(saved(tmp_path, Request("a <rex:0.5>", 7, style), said={"spectra": "[1]"}))
    assert note == Note("a <rex:0.5>", 7, {"backbone": "f00"}, ["bank.rex=a.safetensors"], told, {"spectra": "[1]"})


def test_a_picture_that_says_nothing_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(
        ValueError, match="does not say how it was drawn: it is no PNG of generate.py, or another program"
    ):
        read_note(str(tmp_path / "plain.png"))
    with pytest.raises(ValueError, match="there is no image file"):
        read_note(str(tmp_path / "none.png"))
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot read the image"):
        read_note(str(tmp_path / "text.png"))


WHOLE = {"prompt": "a dog", "seed": 0, "drawn_with": {}, "command": [], "style": {}, "said": {}}
EDITED = {
    "cut short": json.dumps(WHOLE)[:-5],
    "a list": "[]",
    "a field more": json.dumps(WHOLE | {"more": 1}),
    "a field less": json.dumps({key: WHOLE[key] for key in ("prompt", "drawn_with")}),
    "a seed in words": json.dumps(WHOLE | {"seed": "0"}),
    "a command that is no list": json.dumps(WHOLE | {"command": 5}),
    "numbers for words": json.dumps(WHOLE | {"command": [1]}),
    "deep": "[" * 100_000,
    "long": json.dumps(WHOLE | {"prompt": "a" * 2**20}),
}


@pytest.mark.parametrize("how", EDITED)
def test_a_note_that_makes_no_sense_is_refused(tmp_path: Path, how: str) -> None:
    save_png(Image.new("RGB", (8, 8)), tmp_path / "image.png", {ATELIER: EDITED[how]})
    with pytest.raises(ValueError, match="makes no sense"):
        read_note(str(tmp_path / "image.png"))
