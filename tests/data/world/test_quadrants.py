"""The four-quadrant task: what is painted can be read, and no bag of words tells one image from another."""

import re
from collections import Counter
from itertools import permutations

import pytest
import torch

from src.data.world import vocabulary
from src.data.world.quadrants import (
    COLORS,
    FORMS,
    QuadrantData,
    colors_of,
    paint,
    quadrant_text,
    read,
    split,
    told,
)
from tests.placed import global_batches, place


def test_the_split_is_whole_and_always_the_same() -> None:
    train, held_out = split()
    assert (len(train), len(held_out), len({*train, *held_out})) == (300, 60, 360)
    assert split() == (train, held_out)
    assert all(len(set(colors_of(caption))) == 4 for caption in (*train, *held_out))
    assert {color for caption in held_out for color in colors_of(caption)} == set(COLORS)


def test_what_is_painted_is_read() -> None:
    train, held_out = split()
    captions = [*train, *held_out]
    images = paint(captions)
    assert images.shape == (360, 3, 8, 8)
    assert images.min() >= -1 and images.max() <= 1
    assert read(images) == [colors_of(caption) for caption in captions]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert read(images + 0.2 * noise) == read(images)


def test_quadrants_are_in_reading_order() -> None:
    image = paint(["red green blue white."])[0]
    corners = [image[:, row, column] for row in (0, 7) for column in (0, 7)]
    plain = {color: torch.tensor(vocabulary.COLORS[color]) / 127.5 - 1 for color in COLORS}
    for corner, color in zip(corners, ("red", "green", "blue", "white"), strict=True):
        torch.testing.assert_close(corner, plain[color])
    assert torch.equal(image[:, :4, :4], image[:, :1, :1].expand(3, 4, 4))


def test_held_out_captions_use_the_words_of_training_captions() -> None:
    train, held_out = split()
    bags = Counter(tuple(sorted(colors_of(caption))) for caption in train)
    assert all(bags[tuple(sorted(colors_of(caption)))] > 1 for caption in held_out)


@pytest.mark.parametrize("caption", ["red green blue.", "red green blue mauve.", ""])
def test_captions_that_ask_for_something_else(caption: str) -> None:
    with pytest.raises(ValueError, match="does not list four of the colours red, green"):
        colors_of(caption)


def test_batches_hold_the_image_of_the_caption() -> None:
    module = place(QuadrantData(32), 12)
    seen = Counter()
    for batch in module.train_dataloader():
        assert read(batch["latents"]) == [colors_of(caption) for caption in batch["caption"]]
        seen.update(batch["caption"])
    assert set(seen) == set(split()[0]) and set(seen.values()) <= {1, 2}
    assert [text for batch in module.val_dataloader() for text in batch["caption"]] == split()[1]


def test_two_processes_see_the_batches_of_one() -> None:
    one = global_batches([place(QuadrantData(8), 5)])
    assert global_batches([place(QuadrantData(4), 5, rank=rank, ranks=2) for rank in range(2)]) == one


def test_texts_repeat_their_colors() -> None:
    for text in (quadrant_text(seed) for seed in range(200)):
        first, second = (part.split() for part in text.text.rstrip(".").split(". "))
        assert first == second and set(first) <= set(COLORS) and 2 <= len(first) <= 6
        assert [text.text[start:end] for start, end in text.known] == [f"{' '.join(first)}."]


WHERE = {"top left": 0, "top right": 1, "bottom left": 2, "bottom right": 3}
IS = {
    "left of": lambda one, other: one % 2 == 0 and other == one + 1,
    "right of": lambda one, other: one % 2 == 1 and other == one - 1,
    "above": lambda one, other: one < 2 and other == one + 2,
    "below": lambda one, other: one > 1 and other == one - 2,
}


def holds(sentence: str, place: dict[str, int], before: str | None) -> tuple[bool, str | None]:
    """Whether a sentence is true where every colour has a place; and the colour that the next one refers to."""
    if found := re.fullmatch(r"(\w+) is at the (\w+ \w+)", sentence):
        return place[found[1]] == WHERE[found[2]], found[1]
    if found := re.fullmatch(r"(left of|right of|above|below) (?:it|that) is (\w+)", sentence):
        assert before is not None
        return IS[found[1]](place[found[2]], place[before]), found[2]
    if found := re.fullmatch(r"(\w+) is (left of|right of|above|below) (\w+)", sentence):
        return IS[found[2]](place[found[1]], place[found[3]]), None
    if found := re.fullmatch(r"at the (\w+), the one on the (\w+) is (\w+) and the other is (\w+)", sentence):
        row, side, one, other = found.groups()
        opposite = {"left": "right", "right": "left"}[side]
        return (place[one], place[other]) == (WHERE[f"{row} {side}"], WHERE[f"{row} {opposite}"]), None
    found = re.fullmatch(r"(\w+) and (\w+) are at the (\w+), and (\w+) is not on the (\w+)", sentence)
    assert found, sentence
    one, other, row, who, side = found.groups()
    in_row = {place[one], place[other]} == {WHERE[f"{row} left"], WHERE[f"{row} right"]}
    return in_row and place[who] != WHERE[f"{row} {side}"], None


def is_true(text: str, colors: tuple[str, ...]) -> bool:
    before, place = None, {color: at for at, color in enumerate(colors)}
    for sentence in text.removesuffix(".").split(". "):
        true, before = holds(sentence, place, before)
        if not true:
            return False
    return True


@pytest.mark.parametrize("form", [form for form in FORMS if form != "listed"])
def test_each_form_is_true_of_its_picture_alone(form: str) -> None:
    captions = [caption for part in split() for caption in part]
    texts = told(captions, form)
    assert len(set(texts)) == len(captions) and texts == told(captions, form)
    for caption, text in zip(captions, texts, strict=True):
        colors = colors_of(caption)
        assert [other for other in permutations(colors) if is_true(text, other)] == [colors]


def test_a_form_that_is_none() -> None:
    assert told(["red green blue white."], "listed") == ["red green blue white."]
    with pytest.raises(ValueError, match="unknown form of caption 'sung'; choose one of listed, placed, referred"):
        told(["red green blue white."], "sung")


def test_batches_of_several_forms_hold_the_same_pictures() -> None:
    module = QuadrantData(16, num_captions=20, forms=("listed", "negated"))
    listed = split()[0][:20]
    assert module.train.captions == listed + told(listed, "negated")
    assert torch.equal(module.train.images, paint(listed + listed))
