"""Long captions say the truth, and all of it can be found out by reading them and nothing else."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from src.data.world.datamodules import VALIDATION_START, WorldData
from src.data.world.long_captions import (
    FORMS,
    INVERSE,
    long_scene,
    new_words,
    places,
    questions,
    short_or_long_scene,
)
from src.data.world.scenes import RELATIONS, Scene, caption_order, full_caption, sample_scene
from src.data.world.texts import world_text
from src.data.world.tokenizers import words, write_llm_tokenizer
from src.data.world.vocabulary import BACKGROUNDS, COLORS, MARKINGS, NOUNS, PATTERNS, STYLES, is_held_out

SEEDS = range(300)
CONTEXT = 256
Said = tuple[str, str, str]
"""Noun, colour and pattern."""

COLOR, PATTERN, NOUN, RELATION = ("|".join(group) for group in (COLORS, PATTERNS, NOUNS, RELATIONS))
ATTRIBUTES = rf"({COLOR}) and ({PATTERN})"
PLACE = r"on the far left|on the far right|on the left|on the right|in the middle|above|below|behind|in front"


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    return {form: [long_scene(seed, form) for seed in SEEDS] for form in FORMS}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_llm_tokenizer(folder, CONTEXT)
    return AutoTokenizer.from_pretrained(folder)


def listed(text: str) -> list[str]:
    return re.split(", | and ", text)


def read_described(caption: str) -> list[Said]:
    return re.findall(rf"the ({NOUN}) is the one (?:{PLACE}), it is {ATTRIBUTES}", caption)


def read_placed(caption: str) -> list[Said]:
    seen = {place: (color, pattern) for place, color, pattern in re.findall(rf"one ({PLACE}) is {ATTRIBUTES}", caption)}
    where = dict(re.findall(rf"the ({NOUN}) is ({PLACE})", caption))
    named = re.findall(rf"a ({NOUN})\b", caption.partition(".")[0])
    (last,) = set(named) - set(where)
    (free,) = set(seen) - set(where.values())
    return [(noun, *seen[place]) for noun, place in {**where, last: free}.items()]


def read_ordered(caption: str) -> list[Said]:
    (nouns,) = re.findall(rf"((?:(?:, | and )?a (?:{NOUN}))+) from left to right", caption)
    colors, patterns = re.findall(r"in this order they are ([^.]+)", caption)
    return list(zip([noun.removeprefix("a ") for noun in listed(nouns)], listed(colors), listed(patterns), strict=True))


def read_excluded(caption: str) -> list[Said]:
    pair = re.findall(rf"a ({NOUN})\b", caption.partition(".")[0])
    found = {}
    for word, group in (("color", COLOR), ("pattern", PATTERN)):
        both = re.search(rf"both of them are ({group})", caption)
        one = re.search(rf"one of them is ({group}), the other is ({group}), the ({NOUN}) is not ({group})", caption)
        if both:
            found[word] = dict.fromkeys(pair, both.group(1))
        else:
            first, second, noun, excluded = one.groups()
            (other,) = set(pair) - {noun}
            found[word] = {noun: second if excluded == first else first, other: excluded}
    return [(noun, found["color"][noun], found["pattern"][noun]) for noun in pair]


def read_counted(caption: str) -> list[Said]:
    singular = {noun if noun == "fish" else f"{noun}s": noun for noun in NOUNS} | {noun: noun for noun in NOUNS}
    one_each = re.findall(rf"(?:one of )?the (\w+) is {ATTRIBUTES}", caption)
    numbers = dict(zip(("one", "two", "three", "four"), range(1, 5), strict=True))
    counts = re.findall(rf"\b({'|'.join(numbers)}) ({'|'.join(singular)})\b", caption.partition(".")[0])
    said = [(singular[noun], color, pattern) for noun, color, pattern in one_each]
    assert Counter(noun for noun, _, _ in said) == {singular[noun]: numbers[number] for number, noun in counts}
    return said


READERS = {
    "described": read_described,
    "placed": read_placed,
    "ordered": read_ordered,
    "excluded": read_excluded,
    "counted": read_counted,
}


@pytest.mark.parametrize("form", FORMS)
def test_reading_a_caption_gives_its_scene(scenes: dict[str, list[Scene]], form: str) -> None:
    for scene in scenes[form]:
        looks = [(o.look.noun, o.look.color, o.look.pattern) for o in scene.objects]
        assert sorted(READERS[form](scene.caption)) == sorted(looks), scene.caption
        assert BACKGROUNDS[scene.background] in scene.caption
        assert scene.caption.startswith(f"a {STYLES[scene.style]} of ")


def test_places_are_true_to_the_geometry(scenes: dict[str, list[Scene]]) -> None:
    met = set()
    for scene in (scene for each in scenes.values() for scene in each):
        named = places(scene)
        met |= {place for place, _ in named}
        where = dict(named)
        if scene.relation in (None, "next to", "left of", "right of"):
            assert [placed.x for _, placed in named] == sorted(placed.x for placed in scene.objects)
        elif "above" in where:
            assert where["above"].y < where["below"].y
        else:
            assert where["in front"].y > where["behind"].y
            assert scene.objects[-1] is where["in front"]
    assert met == set(PLACE.split("|"))


def test_sentences_about_places_and_relations_are_true(scenes: dict[str, list[Scene]]) -> None:
    met = set()
    for scene in (*scenes["described"], *scenes["placed"]):
        for noun, place in re.findall(rf"the ({NOUN}) is (?:the one )?({PLACE})\b", scene.caption):
            if place in ("above", "below", "behind", "in front") and f"{place} the" in scene.caption:
                continue
            assert dict(places(scene))[place].look.noun == noun
    for scene in scenes["described"]:
        at = {placed.look.noun: placed for placed in scene.objects}
        for first, relation, second in re.findall(
            rf"the ({NOUN}) is ({'|'.join(RELATIONS)}) the ({NOUN})", scene.caption
        ):
            met.add(relation)
            if scene.relation is None:
                assert relation in ("left of", "right of")
                assert (at[first].x < at[second].x) == (relation == "left of")
            else:
                named = [placed.look.noun for placed in caption_order(scene)]
                assert relation == (scene.relation if [first, second] == named else INVERSE[scene.relation])
    assert met == set(RELATIONS)


def test_described_captions_are_long(scenes: dict[str, list[Scene]]) -> None:
    assert min(len(scene.caption.split()) for scene in scenes["described"]) >= 40


@pytest.mark.parametrize("form", ["placed", "ordered"])
def test_words_in_another_order_are_another_scene(form: str) -> None:
    """Two captions of the same words, with different meanings: a bag of words cannot tell them apart."""
    scene = next(s for s in (long_scene(seed, form) for seed in SEEDS) if len(s.objects) == 2)
    first, second = (placed.look for placed in scene.objects)
    looks = [
        replace(first, color=second.color, pattern=second.pattern),
        replace(second, color=first.color, pattern=first.pattern),
    ]
    other = replace(scene, objects=tuple(replace(o, look=look) for o, look in zip(scene.objects, looks, strict=True)))
    told, retold = (FORMS[form].sentences(each, np.random.default_rng(3)) for each in (scene, other))
    assert told != retold
    assert Counter(" ".join(told).replace(",", "").split()) == Counter(" ".join(retold).replace(",", "").split())


def test_counting_means_counting(scenes: dict[str, list[Scene]]) -> None:
    numbers = Counter(max(Counter(o.look.noun for o in scene.objects).values()) for scene in scenes["counted"])
    assert set(numbers) == {2, 3, 4}


def test_no_caption_tells_what_makes_a_subject(scenes: dict[str, list[Scene]]) -> None:
    for scene in (scene for each in scenes.values() for scene in each):
        assert not any(is_held_out(placed.look) for placed in scene.objects)
        said = re.findall(r"\w+", scene.caption)
        assert not set(said) & set(MARKINGS)
        assert {word for word in said if word in COLORS} <= {placed.look.color for placed in scene.objects}


def test_training_and_validation_scenes_differ() -> None:
    train = {long_scene(seed).caption for seed in SEEDS}
    held_out = [long_scene(VALIDATION_START + seed) for seed in range(50)]
    assert not any(scene.caption in train for scene in held_out)
    assert all(scene.texture_seed >= VALIDATION_START for scene in held_out)


def test_answers_are_true(scenes: dict[str, list[Scene]]) -> None:
    asked = 0
    for scene in (scene for each in scenes.values() for scene in each):
        for question, answer in questions(scene):
            (noun,) = re.findall(NOUN, question)
            (look,) = (placed.look for placed in scene.objects if placed.look.noun == noun)
            assert answer == f"{look.color} and {look.pattern}"
            asked += 1
    assert asked > 1000


def test_unknown_form_names_the_choice() -> None:
    with pytest.raises(ValueError, match="unknown form of caption 'rhymed'; choose one of described, placed"):
        long_scene(0, "rhymed")


def test_the_world_renders_them_as_latents(tmp_path: Path) -> None:
    code = str(tmp_path / "code.safetensors")
    data = WorldData(str(tmp_path), 4, 8, 4, code_path=code, latent_channels=8, latents=True, kind="long")
    data.prepare_data()
    data.setup("fit")
    (batch,) = data.val_dataloader()
    assert batch["caption"] == [long_scene(VALIDATION_START + index).caption for index in range(4)]
    assert batch["latents"].shape == (4, 8, 8, 8)
    assert batch["position"].tolist() == [0, 1, 2, 3]


# The tokenizer


def test_every_word_is_one_token(scenes: dict[str, list[Scene]], tokenizer: PreTrainedTokenizerBase) -> None:
    for word in {*words(), *new_words()}:
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1, word
    said = {w for each in scenes.values() for s in each for w in s.caption.replace(",", " ").replace(".", " ").split()}
    assert said <= {*words(), *new_words()}


def test_captions_fit_and_come_back(scenes: dict[str, list[Scene]], tokenizer: PreTrainedTokenizerBase) -> None:
    short = [sample_scene(seed) for seed in SEEDS]
    captions = [scene.caption for each in (*scenes.values(), short) for scene in each]
    captions += [full_caption(scene) for scene in short] + [world_text(seed).text for seed in SEEDS]
    encoded = tokenizer(captions).input_ids
    assert max(map(len, encoded)) < CONTEXT
    assert tokenizer.batch_decode(encoded, skip_special_tokens=True) == captions


def test_no_text_is_unknown(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "un éléphant, 漢字 & 3 zebras!"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ids[0] == tokenizer.bos_token_id and tokenizer.eos_token_id not in ids
    assert tokenizer("").input_ids == [tokenizer.bos_token_id]
    assert tokenizer("A RED Dog").input_ids == tokenizer("a red dog").input_ids


def test_padding_is_on_the_right_with_a_token_of_its_own(tokenizer: PreTrainedTokenizerBase) -> None:
    batch = tokenizer(["a", "a red dog"], padding=True)
    assert batch.attention_mask == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.input_ids[0][2:] == [tokenizer.pad_token_id] * 2
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3


def test_tokenizer_is_the_same_every_time(tmp_path: Path) -> None:
    for name in "abc":
        write_llm_tokenizer(tmp_path / name, CONTEXT)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert len({(tmp_path / name / file).read_bytes() for name in "abc"}) == 1


# Texts to learn from


def test_texts_are_of_every_kind_and_of_one_seed() -> None:
    texts = [world_text(seed) for seed in range(500)]
    assert texts == [world_text(seed) for seed in range(500)]
    assert len(set(texts)) > 450
    skills = Counter(text.skill for text in texts)
    assert set(skills) == {"", "copy", "recall"} and min(skills.values()) > 50


def test_what_is_known_follows_from_what_stands_before() -> None:
    for text in (world_text(seed) for seed in range(500)):
        known = [text.text[start:end] for start, end in text.known]
        if text.skill == "copy":
            assert text.text == " ".join([known[0]] * (len(known) + 1))
        elif text.skill == "recall":
            assert all(word in COLORS or word in PATTERNS for word in known)
            for (start, _), (_, end) in zip(text.known[::2], text.known[1::2], strict=True):
                assert re.search(rf"the ({NOUN}) is $", text.text[:start])
                assert re.fullmatch(ATTRIBUTES, text.text[start:end])
                assert text.text[end] == "."
        else:
            assert not known


def test_short_and_long_captions_take_turns() -> None:
    sentences = [short_or_long_scene(seed).caption.count(".") for seed in range(40)]
    assert max(sentences[::2]) == 0
    assert min(sentences[1::2]) > 1
