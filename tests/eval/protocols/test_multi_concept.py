"""Several concepts in one image: what is drawn, and every number against a few lines of NumPy."""

import csv
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from src.data.request import Request
from src.data.world.render import render
from src.data.world.scenes import subject_scene
from src.eval.concepts import Concept
from src.eval.protocols.layout import GREY, columns, squares
from src.eval.protocols.multi_concept import MultiConceptProtocol, combinations, listed

PROMPTS = ["a {} left of a {} on the grass", "a {}, a {} and a {} in a room"]
NOUNS = {"rex": "dog", "tom": "cat", "pip": "bird"}


@pytest.fixture
def three():
    return [
        Concept(name, noun, [render(subject_scene(index, view, noun)) for view in range(3)])
        for index, (name, noun) in enumerate(NOUNS.items())
    ]


class Strips:
    """Draws each mention as a photo of it in its own column; plain nouns are other individuals."""

    batch_size = 4

    def identity(self, prompt=None):
        return {"drawn": "strips"}

    def check(self, requests):
        pass

    def sample(self, requests):
        return [self._drawn(request) for request in requests]

    def _drawn(self, request):
        words = request.prompt.replace(",", " ").split()
        words = [word for word in words if word[1:-1] in NOUNS or word in NOUNS.values()]
        whole, width = Image.new("RGB", (96, 96), GREY), 96 // len(words)
        for at, word in enumerate(words):
            name = word[1:-1] if word.startswith("<") else None
            index = list(NOUNS).index(name) if name else 7
            photo = render(subject_scene(index, 4 + request.seed, NOUNS.get(name, word)))
            whole.paste(photo.resize((width, width)), (at * width, 30))
        return whole


def rows(folder):
    with (folder / "per_image.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_concept_stands_equally_often_in_every_slot(three, profile, tmp_path):
    asked = MultiConceptProtocol(PROMPTS, 2, profile, str(tmp_path)).items(three)
    found = Counter((item.row["number"], item.row["arm"]) for item in asked)
    assert found == {(number, arm): 6 for number in "23" for arm in ("control", "concept")}
    prompts = {item.request.prompt for item in asked if item.row["arm"] == "concept"}
    assert prompts == {
        *("a <rex> left of a <tom> on the grass", "a <tom> left of a <pip> on the grass"),
        *("a <pip> left of a <rex> on the grass", "a <rex>, a <tom> and a <pip> in a room"),
        *("a <tom>, a <pip> and a <rex> in a room", "a <pip>, a <rex> and a <tom> in a room"),
    }
    for number in (2, 3):
        for slot in range(number):
            assert Counter(chosen[slot].name for chosen in combinations(three, number)) == dict.fromkeys(NOUNS, 1)


def test_numbers_are_those_of_a_few_lines_of_numpy(three, profile, clip, dino, tmp_path):
    protocol = MultiConceptProtocol(PROMPTS, 2, profile, str(tmp_path / "images"))
    metrics = protocol.run(Strips(), three, str(tmp_path))
    assert metrics["protocol"] == "multi_concept" and set(metrics["numbers"]) == {"2", "3"}
    [row] = [
        row
        for row in rows(tmp_path)
        if (row["combination"], row["arm"], row["seed"]) == ("tom_pip_rex", "concept", "1")
    ]
    image = Strips().sample([Request("a <tom>, a <pip> and a <rex> in a room", 1)])[0]
    references = [dino.encode_images(three[at].references) for at in (1, 2, 0)]
    likeness = np.full((3, 3), -1.0)
    for at in range(3):
        # Five squares of 32 pixels, each half of that below the last.
        for square in dino.encode_images([image.crop((32 * at, y, 32 * at + 32, y + 32)) for y in range(0, 65, 16)]):
            likeness[at] = np.maximum(likeness[at], [float((square @ each.T).mean()) for each in references])
    assert float(row["dino"]) == pytest.approx(np.diag(likeness).mean(), abs=1e-5)
    text = clip.encode_texts(["a cat, a bird and a dog in a room"])
    assert float(row["clip_t"]) == pytest.approx(float(clip.encode_images([image]) @ text.T), abs=1e-5)
    means = metrics["numbers"]["3"]["concept"]
    assert means["dino"]["mean"] == pytest.approx(
        np.mean([float(one["dino"]) for one in rows(tmp_path) if (one["number"], one["arm"]) == ("3", "concept")])
    )
    shares = [means[name]["mean"] for name in ("as_asked", "swapped", "mixed", "omitted")]
    assert sum(shares) == pytest.approx(1)
    assert (tmp_path / "per_number.csv").exists() and (tmp_path / "grid_3_concept.png").exists()


def test_columns_are_equal_and_whole():
    assert columns(2) == [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)]
    assert columns(5)[4] == (0.8, 0.0, 1.0, 1.0)


def test_squares_cover_a_column_and_overlap_by_half():
    assert squares(columns(1)[0]) == [(0.0, 0.0, 1.0, 1.0)]
    assert squares(columns(2)[1]) == [(0.5, 0.0, 1.0, 0.5), (0.5, 0.25, 1.0, 0.75), (0.5, 0.5, 1.0, 1.0)]
    fifths = squares(columns(5)[2])
    assert len(fifths) == 9 and [round(top, 6) for _, top, *_ in fifths] == [at / 10 for at in range(9)]
    assert all(bottom - top == pytest.approx(0.2) for _, top, _, bottom in fifths)


def test_what_cannot_be_drawn_is_one_sentence(three, profile, tmp_path):
    with pytest.raises(ValueError, match=r"has 1 slots \{\}; give two or more"):
        MultiConceptProtocol(["a {}"], 1, profile, str(tmp_path))
    with pytest.raises(ValueError, match="asks for 3 concepts, but there are 2; add bank.NAME=PATH"):
        MultiConceptProtocol(PROMPTS, 1, profile, str(tmp_path)).check(three[:2])
    with pytest.raises(ValueError, match="has 2 slots .* with protocol.num_concepts give one"):
        MultiConceptProtocol(PROMPTS[:1], 1, profile, str(tmp_path), num_concepts=3)
    with pytest.raises(ValueError, match="asks for 4 concepts, but there are 3; add bank.NAME=PATH"):
        MultiConceptProtocol(["a {}"], 1, profile, str(tmp_path), num_concepts=4).check(three)


def test_a_slot_holds_as_many_concepts_as_are_asked_for():
    assert [listed("a {} at night", number) for number in (1, 2, 3, 5)] == [
        "a {} at night",
        "a {} left of a {} at night",
        "a {}, a {} and a {} at night",
        "a {}, a {}, a {}, a {} and a {} at night",
    ]


def test_images_of_every_number_have_the_same_places(three, profile, tmp_path):
    """So that a sweep over the number is paired."""
    places = {}
    for number in (1, 2, 3):
        protocol = MultiConceptProtocol(["a {} at night", "a {} here"], 2, profile, str(tmp_path / "images"), 0, number)
        metrics = protocol.run(Strips(), three, str(tmp_path))
        compared = metrics["compared"]
        assert compared["factors"] == ["prompt", "first"] and "by" not in compared
        assert metrics["num_concepts"] == number and set(metrics["numbers"]) == {str(number)}
        found = [row for row in rows(tmp_path) if row["arm"] == "concept"]
        places[number] = [(row["prompt"], row["first"], row["seed"]) for row in found]
        assert {row["combination"].count("_") for row in found} == {number - 1}
        asked = {item.request.prompt for item in protocol.items(three) if item.row["arm"] == "concept"}
        assert f"{listed('a {} at night', number)}".format(*[f"<{name}>" for name in NOUNS][:number]) in asked
    assert places[1] == places[2] == places[3] and len(set(places[1])) == 2 * 3 * 2
