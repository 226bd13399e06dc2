"""Every test caption is held out, says all of its scene, and asks for what its kind is about."""

from collections import Counter

import pytest

from src.data.world.caption_tests import KINDS, LONG, OCCLUDING, CaptionTest, caption_tests
from src.data.world.datamodules import VALIDATION_START
from src.data.world.long_captions import NUMBERS, plural
from src.data.world.vocabulary import BACKGROUNDS, is_held_out

NUMBER = 30
TRAINING_TRIES = 20_000_000


@pytest.fixture(scope="module")
def tests() -> dict[str, list[CaptionTest]]:
    return {kind: caption_tests([kind], NUMBER) for kind in KINDS}


def every(tests: dict[str, list[CaptionTest]]) -> list[CaptionTest]:
    return [test for of in tests.values() for test in of]


def test_a_caption_says_all_of_its_scene(tests: dict[str, list[CaptionTest]]) -> None:
    for test in every(tests):
        words = test.caption.replace(",", "").replace(".", "").split()
        for look in test.looks:
            assert {look.color, look.pattern} <= set(words), test.caption
            assert {look.noun, plural(look.noun)} & set(words), test.caption
            assert f"a {look.color} {look.pattern} {look.noun}" in test.short
        assert BACKGROUNDS[test.scene.background] in test.caption and BACKGROUNDS[test.scene.background] in test.short


def test_nothing_in_a_scene_is_hidden_or_ambiguous(tests: dict[str, list[CaptionTest]]) -> None:
    for test in every(tests):
        colors = [look.color for look in test.looks]
        assert len(set(colors)) == len(colors)
        assert test.scene.style == "photo" and test.scene.relation not in OCCLUDING
        assert not any(is_held_out(look) for look in test.looks)
        if test.placed:
            assert len({look.noun for look in test.looks}) == len(test.looks)


def test_looks_are_in_the_order_of_their_places(tests: dict[str, list[CaptionTest]]) -> None:
    both = set()
    for test in every(tests):
        places = {placed.look: placed.y if test.stacked else placed.x for placed in test.scene.objects}
        assert [places[look] for look in test.looks] == sorted(places.values())
        both.add(test.stacked)
    assert both == {True, False}


def test_each_kind_asks_for_what_it_is_about(tests: dict[str, list[CaptionTest]]) -> None:
    assert all(len(test.looks) == 1 for test in tests["short"])
    assert all(len(test.caption.split()) >= LONG for test in tests["long"])
    phrases = [f"a {look.color} {look.pattern} {look.noun}" for test in tests["binding"] for look in test.looks]
    assert not any(phrase in test.caption for test in tests["binding"] for phrase in phrases)
    forms = Counter("in this order" in test.caption or "not" in test.caption for test in tests["binding"])
    assert len(forms) == 2
    assert {test.scene.relation for test in tests["relation"]} == {"left of", "right of", "above", "below"}
    for test in tests["counting"]:
        nouns = Counter(look.noun for look in test.looks)
        said = [f"{NUMBERS[number]} {plural(noun)}" for noun, number in nouns.items() if number > 1]
        assert said and all(one in test.caption for one in said)


def test_tests_are_held_out_and_no_scene_is_tested_twice(tests: dict[str, list[CaptionTest]]) -> None:
    seeds = [test.scene.texture_seed for test in every(tests)]
    assert len(set(seeds)) == len(seeds) == NUMBER * len(KINDS)
    assert all(seed % TRAINING_TRIES >= VALIDATION_START for seed in seeds)
    captions = [test.caption for test in every(tests)]
    assert len(set(captions)) == len(captions)


def test_more_tests_begin_with_the_same_ones(tests: dict[str, list[CaptionTest]]) -> None:
    assert caption_tests(["counting", "short"], 3) == tests["counting"][:3] + tests["short"][:3]


@pytest.mark.parametrize(
    ("kinds", "number", "message"),
    [
        (["colour"], 3, "unknown kind of captions 'colour'; choose from short, long, binding"),
        (["long", "long"], 3, "different kinds"),
        ([], 3, "different kinds"),
        (["long"], 0, "at least one of each"),
    ],
)
def test_what_cannot_be_tested_is_said(kinds: list[str], number: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        caption_tests(kinds, number)
